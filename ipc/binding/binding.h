/* What the files of the binding share. */
#ifndef BINDING_H
#define BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "tsq.h"

/* Copies of more bytes let go of the GIL, while `busy` keeps close() from unmapping under them. */
#define RELEASE_GIL_FROM (64 * 1024)

typedef struct {
    PyObject_HEAD tsq q;
    uint64_t size;
    int busy;
    uint64_t seen_news; /* what answer() last told of the queue's offices and times */
} Core;

#define WITHOUT_GIL_IF(condition, statement)                                                       \
    do {                                                                                           \
        if (condition) {                                                                           \
            self->busy++;                                                                          \
            Py_BEGIN_ALLOW_THREADS;                                                                \
            statement;                                                                             \
            Py_END_ALLOW_THREADS;                                                                  \
            self->busy--;                                                                          \
        } else {                                                                                   \
            statement;                                                                             \
        }                                                                                          \
    } while (0)

/* What answer() tells. */
#define ENDED 1 /* a watched message has */
#define NEWS 2  /* of who is there, of offices, of what is due */

/* module.c */
extern PyObject *err_segment, *err_queue;
PyObject *fail(int rc); /* sets the exception of a status; NULL */
int is_open(const Core *self);
PyObject *wake_list(const Core *self, const uint64_t wake[TSQ_WAKE_WORDS]); /* tuple of those to ring */

/* arguments.c: 1, or 0 with an exception set */
typedef PyObject *const *fast_args;
int want(Py_ssize_t n, Py_ssize_t expected);
int as_u32(PyObject *v, uint32_t *out);
int as_u64(PyObject *v, uint64_t *out);
int as_index(const Core *self, PyObject *v, uint32_t *out); /* of a participant */
uint64_t now_ns(void);                                      /* Unix time */

extern PyMethodDef segment_functions[];
extern PyMethodDef segment_methods[];
extern PyMethodDef participant_methods[];
extern PyGetSetDef shared_numbers[];
extern PyMethodDef put_methods[];
extern PyMethodDef lease_methods[];
extern PyMethodDef outcome_methods[];
extern PyMethodDef waking_methods[];
extern PyMethodDef repair_methods[];

PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwds);
void core_dealloc(Core *self);

#define METHOD(name, flags) {#name, (PyCFunction)(void (*)(void))core_##name, flags, NULL}
#define END_OF_METHODS {NULL, NULL, 0, NULL}

#endif
