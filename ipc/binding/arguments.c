/* Arguments of functions that are called for every message, without the parser of format strings. */
#include "binding.h"

#include <time.h>

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int want(Py_ssize_t n, Py_ssize_t expected) {
    if (n == expected) return 1;
    PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", n, expected);
    return 0;
}

int as_u64(PyObject *v, uint64_t *out) {
    *out = PyLong_AsUnsignedLongLong(v);
    return !(*out == (uint64_t)-1 && PyErr_Occurred());
}

int as_u32(PyObject *v, uint32_t *out) {
    uint64_t wide;
    if (!as_u64(v, &wide)) return 0;
    if (wide > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a number does not fit into 32 bits");
        return 0;
    }
    *out = (uint32_t)wide;
    return 1;
}

int as_index(const Core *self, PyObject *v, uint32_t *out) {
    if (!is_open(self) || !as_u32(v, out)) return 0;
    if (*out < self->q.geo.participants) return 1;
    (void)fail(TSQ_BAD_ARGUMENT);
    return 0;
}
