/* Binding of the queue's core: class Core, one mapping of one segment.
 *
 * Thin on purpose: it maps the file, converts arguments, and turns status codes into the exceptions of
 * taskiq_supervise.ipc.errors. Participants, lock bytes, doorbells and every policy are Python.
 * The GIL is held through an operation (hundreds of nanoseconds) and let go for long copies.
 */
#include "binding.h"

#include <string.h>

static PyObject *err_full, *err_large, *err_lost;
PyObject *err_segment, *err_queue;

PyObject *fail(int rc) {
    switch (rc) {
    case TSQ_FULL: PyErr_SetString(err_full, "the queue is full: no free slot or block"); break;
    case TSQ_TOO_LARGE: PyErr_SetString(err_large, "the payload is larger than the queue's largest block"); break;
    case TSQ_FENCED: PyErr_SetString(err_lost, "the lease is not held any more"); break;
    case TSQ_NO_MEMORY: PyErr_NoMemory(); break;
    case TSQ_GONE: PyErr_SetString(err_segment, "the slot's contents are out of bounds: the segment is damaged"); break;
    default: PyErr_SetString(PyExc_ValueError, "argument out of range, or the wrong step for this lease"); break;
    }
    return NULL;
}

int is_open(const Core *self) {
    if (self->q.base) return 1;
    PyErr_SetString(PyExc_ValueError, "operation on a closed queue");
    return 0;
}

PyObject *wake_list(const Core *self, const uint64_t wake[TSQ_WAKE_WORDS]) {
    uint32_t n = 0, words = self->q.geo.participants / 64;
    for (uint32_t w = 0; w < words; w++) n += (uint32_t)__builtin_popcountll(wake[w]);
    PyObject *out = PyTuple_New(n);
    Py_ssize_t k = 0;
    for (uint32_t w = 0; out && w < words; w++)
        for (uint64_t v = wake[w]; v; v &= v - 1) {
            PyObject *who = PyLong_FromUnsignedLong(w * 64 + (uint32_t)__builtin_ctzll(v));
            if (!who) {
                Py_CLEAR(out);
                break;
            }
            PyTuple_SET_ITEM(out, k++, who);
        }
    return out;
}

static PyTypeObject core_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "taskiq_supervise.ipc._core.Core",
    .tp_basicsize = sizeof(Core),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "One mapping of one queue segment.",
    .tp_new = core_new,
    .tp_dealloc = (destructor)core_dealloc,
    .tp_getset = shared_numbers,
};

/* A type has one table of methods; each file of the binding has its own. */
static PyMethodDef methods[80];

static void collect_methods(void) {
    PyMethodDef *const tables[] = {segment_methods, participant_methods, put_methods,   lease_methods,
                                   outcome_methods, waking_methods,      repair_methods};
    size_t n = 0;
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (PyMethodDef *m = tables[t]; m->ml_name && n + 1 < sizeof methods / sizeof *methods; m++) methods[n++] = *m;
    memset(&methods[n], 0, sizeof methods[n]);
}

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_core", .m_size = -1, .m_methods = segment_functions};

PyMODINIT_FUNC PyInit__core(void) {
    PyObject *errors = PyImport_ImportModule("taskiq_supervise.ipc.errors");
    if (!errors) return NULL;
    err_full = PyObject_GetAttrString(errors, "QueueFull");
    err_large = PyObject_GetAttrString(errors, "PayloadTooLarge");
    err_lost = PyObject_GetAttrString(errors, "LeaseLost");
    err_segment = PyObject_GetAttrString(errors, "SegmentError");
    err_queue = PyObject_GetAttrString(errors, "QueueError");
    Py_DECREF(errors);
    if (!err_full || !err_large || !err_lost || !err_segment || !err_queue) return NULL;
    collect_methods();
    core_type.tp_methods = methods;
    if (PyType_Ready(&core_type)) return NULL;
    PyObject *mod = PyModule_Create(&module);
    if (!mod) return NULL;
    if (PyModule_AddObjectRef(mod, "Core", (PyObject *)&core_type) ||
        PyModule_AddIntConstant(mod, "ENDED", ENDED) ||
        PyModule_AddIntConstant(mod, "NEWS", NEWS) || PyModule_AddIntConstant(mod, "LANES", TSQ_LANES) || PyModule_AddIntConstant(mod, "MAX_ID", TSQ_MAX_ID) ||
        PyModule_AddIntConstant(mod, "MAX_SLOTS", TSQ_MAX_SLOTS) ||
        PyModule_AddIntConstant(mod, "MAX_SENDERS", TSQ_MAX_SENDERS) ||
        PyModule_AddIntConstant(mod, "SENDER_ID", TSQ_SENDER_ID) ||
        PyModule_AddIntConstant(mod, "MAX_PARTICIPANTS", TSQ_MAX_PARTICIPANTS)) {
        Py_DECREF(mod);
        return NULL;
    }
    return mod;
}
