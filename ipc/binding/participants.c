/* Participants, and the numbers that all of them share. */
#include "binding.h"

static PyObject *core_register(Core *self, PyObject *args) {
    unsigned me, role, pid, guardian, tag;
    if (!is_open(self) || !PyArg_ParseTuple(args, "IIIII", &me, &role, &pid, &guardian, &tag)) return NULL;
    int rc = tsq_register(&self->q, me, role, pid, guardian, tag);
    if (rc) return fail(rc);
    Py_RETURN_NONE;
}

static PyObject *core_participant(Core *self, PyObject *arg) {
    tsq_participant p;
    uint32_t i;
    if (!as_index(self, arg, &i)) return NULL;
    int rc = tsq_participant_at(&self->q, i, &p);
    if (rc) return fail(rc);
    return Py_BuildValue("NIIIIN", PyBool_FromLong(p.live), p.role, p.pid, p.guardian, p.tag,
                         PyLong_FromUnsignedLong(p.generation));
}

static PyObject *core_generation(Core *self, PyObject *arg) {
    uint32_t i;
    tsq_participant p;
    if (!as_index(self, arg, &i)) return NULL;
    int rc = tsq_participant_at(&self->q, i, &p);
    return rc ? fail(rc) : PyLong_FromUnsignedLong(p.generation);
}

static PyObject *core_unregister(Core *self, PyObject *arg) {
    uint32_t i;
    if (!as_index(self, arg, &i)) return NULL;
    tsq_unregister(&self->q, i);
    Py_RETURN_NONE;
}

static PyObject *core_explain(Core *self, PyObject *arg) {
    uint32_t i;
    if (!as_index(self, arg, &i)) return NULL;
    tsq_explain(&self->q, i);
    Py_RETURN_NONE;
}

/* limit: what is not below it is damage, and read as 0. */
#define SHARED_NUMBER(name, where, limit)                                                          \
    static PyObject *name##_get(Core *self, void *Py_UNUSED(closure)) {                            \
        if (!is_open(self)) return NULL;                                                           \
        uint32_t n = atomic_load(where(&self->q));                                                 \
        return PyLong_FromUnsignedLong(n < (limit) ? n : 0);                                       \
    }                                                                                              \
    static int name##_set(Core *self, PyObject *v, void *Py_UNUSED(closure)) {                     \
        if (!v) {                                                                                  \
            PyErr_SetString(PyExc_AttributeError, "cannot be deleted");                            \
            return -1;                                                                             \
        }                                                                                          \
        unsigned long n = PyLong_AsUnsignedLong(v);                                                \
        if (PyErr_Occurred() || !is_open(self)) return -1;                                         \
        atomic_store(where(&self->q), (uint32_t)n);                                                \
        return 0;                                                                                  \
    }

SHARED_NUMBER(core_custodian, tsq_custodian, self->q.geo.participants)
SHARED_NUMBER(core_supervisor, tsq_supervisor, self->q.geo.participants)
SHARED_NUMBER(core_max_deliveries, tsq_max_deliveries, UINT32_MAX)
SHARED_NUMBER(core_changes, tsq_changes, UINT32_MAX)
SHARED_NUMBER(core_deputy, tsq_deputy, self->q.geo.participants)

#define SHARED_TIME(name, where)                                                                   \
    static PyObject *name##_get(Core *self, void *Py_UNUSED(closure)) {                            \
        if (!is_open(self)) return NULL;                                                           \
        return PyLong_FromUnsignedLongLong(atomic_load(where(&self->q)));                          \
    }

SHARED_TIME(core_next_due, tsq_next_due)
SHARED_TIME(core_result_ttl, tsq_result_ttl)

static int core_result_ttl_set(Core *self, PyObject *v, void *Py_UNUSED(closure)) {
    uint64_t ns;
    if (!v) {
        PyErr_SetString(PyExc_AttributeError, "cannot be deleted");
        return -1;
    }
    if (!is_open(self) || !as_u64(v, &ns)) return -1;
    atomic_store(tsq_result_ttl(&self->q), ns);
    return 0;
}

#define NUMBER(name) {#name, (getter)core_##name##_get, (setter)core_##name##_set, NULL, NULL}
PyGetSetDef shared_numbers[] = {NUMBER(custodian),
                                NUMBER(deputy),
                                NUMBER(supervisor),
                                NUMBER(max_deliveries),
                                NUMBER(changes),
                                NUMBER(result_ttl),
                                {"next_due", (getter)core_next_due_get, NULL, NULL, NULL},
                                {NULL, NULL, NULL, NULL, NULL}};

PyMethodDef participant_methods[] = {METHOD(register, METH_VARARGS), METHOD(unregister, METH_O),
                                     METHOD(participant, METH_O), METHOD(generation, METH_O), METHOD(explain, METH_O), END_OF_METHODS};
