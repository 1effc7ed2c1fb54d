/* Outcomes: finding, reading, watching, forgetting; looking at messages of others. */
#include "binding.h"

#define SMALL 4096

static PyObject *core_find(Core *self, PyObject *arg) {
    char *id;
    Py_ssize_t n;
    uint32_t i;
    uint64_t gen;
    if (!is_open(self) || PyBytes_AsStringAndSize(arg, &id, &n)) return NULL;
    if (n > (Py_ssize_t)TSQ_MAX_ID || tsq_find(&self->q, id, (uint32_t)n, &i, &gen)) Py_RETURN_NONE;
    return Py_BuildValue("IK", i, (unsigned long long)gen);
}

static int as_ticket(const Core *self, fast_args args, Py_ssize_t n, uint32_t *slot, uint64_t *gen) {
    return is_open(self) && want(n, 2) && as_u32(args[0], slot) && as_u64(args[1], gen);
}

static PyObject *core_outcome(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t i;
    uint64_t gen;
    tsq_outcome o;
    char small[SMALL];
    PyObject *data = NULL;
    if (!as_ticket(self, args, n, &i, &gen)) return NULL;
    int rc = tsq_get_outcome(&self->q, i, gen, &o, small, sizeof small);
    if (rc == TSQ_PENDING) Py_RETURN_NONE;
    if (!rc) data = PyBytes_FromStringAndSize(small, (Py_ssize_t)o.len);
    if (rc == TSQ_TOO_LARGE) {
        data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)o.len);
        if (!data) return NULL;
        char *to = PyBytes_AS_STRING(data);
        uint64_t room = o.len;
        WITHOUT_GIL_IF(room >= RELEASE_GIL_FROM, rc = tsq_get_outcome(&self->q, i, gen, &o, to, room));
    }
    if (rc) {
        Py_XDECREF(data);
        PyErr_SetString(PyExc_LookupError, "the outcome has left its slot");
        return NULL;
    }
    if (!data) return NULL;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_call_next(&self->q, wake); /* what has been read can make room */
    PyObject *who = wake_list(self, wake);
    if (!who) {
        Py_DECREF(data);
        return NULL;
    }
    return Py_BuildValue("IIKKINN", o.kind, o.attempts, (unsigned long long)o.death, (unsigned long long)o.done_ns,
                         o.format, data, who);
}

static PyObject *core_watch(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, i;
    if (!want(n, 2) || !as_index(self, args[0], &me) || !as_u32(args[1], &i)) return NULL;
    tsq_watch(&self->q, me, i);
    Py_RETURN_NONE;
}

static PyObject *core_unwatch(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, i;
    if (!want(n, 2) || !as_index(self, args[0], &me) || !as_u32(args[1], &i)) return NULL;
    tsq_unwatch(&self->q, me, i);
    Py_RETURN_NONE;
}

static PyObject *core_completions(Core *self, PyObject *arg) {
    uint32_t slots[1024], me;
    if (!as_index(self, arg, &me)) return NULL;
    uint32_t n = tsq_completions(&self->q, me, slots, 1024);
    PyObject *out = PyList_New(n);
    for (uint32_t i = 0; out && i < n; i++) {
        PyObject *v = PyLong_FromUnsignedLong(slots[i]);
        if (!v) {
            Py_CLEAR(out);
            break;
        }
        PyList_SET_ITEM(out, i, v);
    }
    return out;
}

/* me, slot, generation, unawaited */
static PyObject *core_forget_outcome(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, i, unawaited;
    uint64_t gen;
    if (!want(n, 4) || !as_index(self, args[0], &me) || !as_u32(args[1], &i) || !as_u64(args[2], &gen) ||
        !as_u32(args[3], &unawaited))
        return NULL;
    return PyBool_FromLong(tsq_forget(&self->q, me, i, gen, (int)unawaited) == TSQ_OK);
}

static PyObject *core_word(Core *self, PyObject *arg) {
    uint32_t i;
    tsq_view view;
    if (!is_open(self) || !as_u32(arg, &i)) return NULL;
    if (i >= self->q.geo.slots) return fail(TSQ_BAD_ARGUMENT);
    (void)tsq_look(&self->q, i, &view);
    return PyLong_FromUnsignedLongLong(view.word);
}

static PyObject *core_look(Core *self, PyObject *arg) {
    uint32_t i;
    tsq_view v;
    if (!is_open(self) || !as_u32(arg, &i)) return NULL;
    if (tsq_look(&self->q, i, &v)) Py_RETURN_NONE;
    return Py_BuildValue("KKKKKKKIIIIN", (unsigned long long)v.word, (unsigned long long)v.death,
                         (unsigned long long)v.created_ns, (unsigned long long)v.done_ns, (unsigned long long)v.due_ns,
                         (unsigned long long)v.expires_ns, (unsigned long long)v.size, v.lane, v.format,
                         v.max_deliveries, v.kind, PyUnicode_DecodeUTF8(v.id, (Py_ssize_t)v.id_len, "replace"));
}

PyMethodDef outcome_methods[] = {METHOD(find, METH_O),
                                 METHOD(outcome, METH_FASTCALL),
                                 METHOD(watch, METH_FASTCALL),
                                 METHOD(unwatch, METH_FASTCALL),
                                 METHOD(completions, METH_O),
                                 METHOD(forget_outcome, METH_FASTCALL),
                                 METHOD(word, METH_O),
                                 METHOD(look, METH_O),
                                 END_OF_METHODS};
