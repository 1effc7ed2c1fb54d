/* Copies between private memory and the segment.
 *
 * A reader without a lease may copy while the slot is being reused; it checks the slot word after
 * the copy and throws torn data away. For that check to be sound each shared 8-byte access is atomic:
 * acquire on the reading side, so that the word is read after the data, and release on the writing
 * side, so that whoever sees new data also sees the word that announced it. On x86-64 both are
 * plain moves; ThreadSanitizer sees the whole protocol.
 */
#include <string.h>

#include "layout.h"

void copy_in(tsq_au64 *dst, const void *src, uint64_t len) {
    const char *s = src;
    uint64_t whole = len / 8, rest = len % 8;
    for (uint64_t i = 0; i < whole; i++) {
        uint64_t v;
        memcpy(&v, s + i * 8, 8);
        atomic_store_explicit(&dst[i], v, memory_order_release);
    }
    if (rest) {
        uint64_t v = 0;
        memcpy(&v, s + whole * 8, rest);
        atomic_store_explicit(&dst[whole], v, memory_order_release);
    }
}

void copy_out(void *dst, const tsq_au64 *src, uint64_t len) {
    char *d = dst;
    uint64_t whole = len / 8, rest = len % 8;
    for (uint64_t i = 0; i < whole; i++) {
        uint64_t v = atomic_load_explicit(&src[i], memory_order_acquire);
        memcpy(d + i * 8, &v, 8);
    }
    if (rest) {
        uint64_t v = atomic_load_explicit(&src[whole], memory_order_acquire);
        memcpy(d + whole * 8, &v, rest);
    }
}
