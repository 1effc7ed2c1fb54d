/* Repair after deaths, the audit, and what is due. */
#include "binding.h"

#include <stdlib.h>

static PyObject *core_recover(Core *self, PyObject *args) {
    unsigned dead, me;
    unsigned long long cause, now;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_repair *list;
    uint32_t n;
    if (!is_open(self) || !PyArg_ParseTuple(args, "IIKK", &dead, &me, &cause, &now)) return NULL;
    int rc = tsq_recover(&self->q, dead, me, cause, now, &list, &n, wake);
    if (rc) {
        free(list);
        return fail(rc);
    }
    PyObject *ids[] = {PyList_New(0), PyList_New(0), PyList_New(0), PyList_New(0)}; /* in the order of tsq_repair_kind */
    int ok = ids[0] && ids[1] && ids[2] && ids[3];
    for (uint32_t i = 0; ok && i < n; i++) {
        char id[TSQ_MAX_ID];
        uint32_t id_len = 0;
        if (tsq_id_of(&self->q, list[i].slot, tsq_gen_of(list[i].word), id, &id_len)) continue;
        PyObject *item = PyUnicode_DecodeUTF8(id, (Py_ssize_t)id_len, "replace");
        ok = item && !PyList_Append(ids[list[i].kind - 1], item);
        Py_XDECREF(item);
    }
    free(list);
    PyObject *who = ok ? wake_list(self, wake) : NULL;
    if (who) return Py_BuildValue("NNNNN", ids[0], ids[1], ids[2], ids[3], who);
    for (int k = 0; k < 4; k++) Py_XDECREF(ids[k]);
    return NULL;
}

/* me, now, life of dead letters (ns) */
static PyObject *core_audit(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, expired, rehinted;
    uint64_t now, dead_ttl;
    if (!want(n, 3) || !as_index(self, args[0], &me) || !as_u64(args[1], &now) || !as_u64(args[2], &dead_ttl)) return NULL;
    int rc = tsq_audit(&self->q, me, now, dead_ttl, &expired, &rehinted);
    return rc ? fail(rc) : Py_BuildValue("II", expired, rehinted);
}

static PyObject *core_run_due(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, moved, expired;
    uint64_t now, next, wake[TSQ_WAKE_WORDS] = {0};
    if (!want(n, 2) || !as_index(self, args[0], &me) || !as_u64(args[1], &now)) return NULL;
    tsq_run_due(&self->q, me, now, &next, &moved, &expired, wake);
    PyObject *who = wake_list(self, wake);
    return who ? Py_BuildValue("KIIN", (unsigned long long)next, moved, expired, who) : NULL;
}

static PyObject *core_plan_due(Core *self, PyObject *arg) {
    uint64_t at;
    if (!is_open(self) || !as_u64(arg, &at)) return NULL;
    return PyBool_FromLong(tsq_plan_due(&self->q, at));
}

static PyObject *core_counts(Core *self, PyObject *Py_UNUSED(ignored)) {
    tsq_counts c;
    if (!is_open(self)) return NULL;
    tsq_count(&self->q, &c);
    return Py_BuildValue("IIIIIIIII", c.free, c.writing, c.ready, c.delayed, c.leased, c.running, c.acked, c.done, c.dead);
}

static PyObject *salvaged(Core *self, uint32_t slot, char *payload) {
    tsq_message m;
    uint64_t word;
    char id[TSQ_MAX_ID];
    int rc = tsq_salvage(&self->q, slot, &m, &word, id, payload);
    if (rc == TSQ_GONE) Py_RETURN_NONE;
    if (rc) return fail(rc);
    return Py_BuildValue("KNy#IKIIKKK", (unsigned long long)word, PyUnicode_DecodeUTF8(id, m.id_len, "replace"), payload,
                         (Py_ssize_t)m.len, m.format, (unsigned long long)m.size, m.lane, m.max_deliveries,
                         (unsigned long long)m.now_ns, (unsigned long long)m.due_ns, (unsigned long long)m.expires_ns);
}

/* Of a segment that nobody uses: what is in a slot. LeaseLost: it is not whole. */
static PyObject *core_salvage(Core *self, PyObject *arg) {
    uint32_t slot;
    if (!is_open(self) || !as_u32(arg, &slot)) return NULL;
    char *payload = PyMem_Malloc(self->q.geo.block[self->q.geo.classes - 1].size + self->q.geo.inline_size);
    if (!payload) return PyErr_NoMemory();
    PyObject *out = salvaged(self, slot, payload);
    PyMem_Free(payload);
    return out;
}

static PyObject *core_is_checked(Core *self, PyObject *Py_UNUSED(ignored)) {
    if (!is_open(self)) return NULL;
    return PyBool_FromLong(tsq_is_checked(&self->q));
}

/* me, slot, generation, starts, death record of a message that nobody else has seen yet. */
static PyObject *core_set_attempts(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, attempts;
    uint64_t gen, death;
    tsq_lease lease;
    tsq_view view;
    if (!want(n, 5) || !as_index(self, args[0], &me) || !as_u32(args[1], &lease.slot) || !as_u64(args[2], &gen) ||
        !as_u32(args[3], &attempts) || !as_u64(args[4], &death))
        return NULL;
    if (tsq_look(&self->q, lease.slot, &view) || tsq_gen_of(view.word) != gen) return fail(TSQ_BAD_ARGUMENT);
    lease.word = view.word;
    tsq_set_attempts(&self->q, &lease, attempts, death);
    Py_RETURN_NONE;
}

PyMethodDef repair_methods[] = {METHOD(salvage, METH_O), METHOD(is_checked, METH_NOARGS),
                                METHOD(set_attempts, METH_FASTCALL),
                                METHOD(recover, METH_VARARGS), METHOD(audit, METH_FASTCALL),
                                METHOD(run_due, METH_FASTCALL), METHOD(plan_due, METH_O), METHOD(counts, METH_NOARGS), END_OF_METHODS};
