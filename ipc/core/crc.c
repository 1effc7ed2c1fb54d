/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), by the processor's instruction where it has one. */
#include <string.h>

#include "layout.h"

static uint32_t step(uint32_t crc, unsigned char byte) {
    crc ^= byte;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1u)));
    return crc;
}

static uint32_t by_bits(uint32_t crc, const unsigned char *p, uint64_t len) {
    while (len--) crc = step(crc, *p++);
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const unsigned char *p, uint64_t len) {
    uint64_t wide = crc;
    for (; len >= 8; len -= 8, p += 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        wide = __builtin_ia32_crc32di(wide, v);
    }
    crc = (uint32_t)wide;
    while (len--) crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}
#endif

uint32_t tsq_crc32c(uint32_t crc, const void *data, uint64_t len) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return ~by_instruction(~crc, data, len);
#endif
    return ~by_bits(~crc, data, len);
}
