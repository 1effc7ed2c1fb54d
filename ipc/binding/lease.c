/* Leases: claiming, starting, ending. */
#include "binding.h"

#define SMALL 4096

static int as_lease(const Core *self, PyObject *slot, PyObject *word, tsq_lease *lease) {
    return is_open(self) && as_u32(slot, &lease->slot) && as_u64(word, &lease->word);
}

/* The payload as bytes; NULL with *rc, or with an exception when *rc is TSQ_OK. */
static PyObject *read_payload(Core *self, const tsq_lease *lease, char *id, uint32_t *id_len, int *rc) {
    char small[SMALL];
    uint64_t len = 0;
    *rc = tsq_read_request(&self->q, lease, id, id_len, small, sizeof small, &len);
    if (!*rc) return PyBytes_FromStringAndSize(small, (Py_ssize_t)len);
    if (*rc != TSQ_TOO_LARGE) return NULL;
    PyObject *payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
    *rc = TSQ_OK;
    if (!payload) return NULL;
    char *to = PyBytes_AS_STRING(payload);
    uint64_t room = len;
    WITHOUT_GIL_IF(len >= RELEASE_GIL_FROM, *rc = tsq_read_request(&self->q, lease, id, id_len, to, room, &len));
    if (*rc) Py_CLEAR(payload);
    return payload;
}

/* slot, word, id, payload, attempts, format, expires, sleeper to ring, of a message claimed just now. */
static PyObject *claimed(Core *self, uint32_t me, tsq_lease *lease, int start, uint32_t sleeper) {
    char id[TSQ_MAX_ID];
    uint32_t id_len = 0;
    int rc;
    PyObject *payload = read_payload(self, lease, id, &id_len, &rc);
    if (payload) {
        uint64_t expires = tsq_expiry_of(&self->q, lease);
        if (start && !expires) (void)tsq_start(&self->q, lease);
        return Py_BuildValue("IKNNIIKI", lease->slot, (unsigned long long)lease->word,
                             PyUnicode_DecodeUTF8(id, (Py_ssize_t)id_len, "replace"), payload,
                             tsq_attempt_of(lease->word), tsq_format_of(&self->q, lease), (unsigned long long)expires,
                             sleeper);
    }
    if (rc == TSQ_GONE) { /* damaged: kept as a dead letter, or every worker would stumble over it */
        static const char text[] = "\x04\0\0\0\0\0\0\0\0the slot's contents are out of bounds";
        uint64_t ring[TSQ_WAKE_WORDS] = {0};
        (void)tsq_dead_letter(&self->q, me, lease, text, sizeof text - 1, 0, ring);
        return fail(rc);
    }
    tsq_call call;
    if (!rc) (void)tsq_release(&self->q, me, lease, now_ns(), &call); /* no memory for it */
    return rc ? fail(rc) : NULL;
}

static PyObject *core_claim(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, again;
    tsq_lease lease;
    if (!want(n, 2) || !as_index(self, args[0], &me) || !as_u32(args[1], &again)) return NULL;
    if (again ? tsq_claim(&self->q, me, &lease) : tsq_claim_new(&self->q, me, &lease)) Py_RETURN_NONE;
    return claimed(self, me, &lease, 0, 0);
}

/* me, again, is_empty: claims, or goes to sleep. The look after the announcement is what makes it safe:
 * who published before it saw us asleep rings nobody. Who gets one and sees more wakes the next. */
static PyObject *core_claim_or_sleep(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, again, is_empty;
    tsq_lease lease;
    if (!want(n, 3) || !as_index(self, args[0], &me) || !as_u32(args[1], &again) || !as_u32(args[2], &is_empty))
        return NULL;
    int (*claim)(tsq *, uint32_t, tsq_lease *) = again ? tsq_claim : tsq_claim_new;
    if (claim(&self->q, me, &lease)) {
        tsq_sleep(&self->q, me, (int)is_empty);
        if (claim(&self->q, me, &lease)) Py_RETURN_NONE;
    }
    tsq_wake_up(&self->q, me);
    tsq_set_empty(&self->q, me, 0);
    return claimed(self, me, &lease, 0, tsq_ready_hints(&self->q) ? tsq_pick_sleeper(&self->q, me, 0) : 0);
}

/* me, how many at most. Started already, but for those that may have expired. */
static PyObject *core_claim_many(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, most;
    tsq_lease lease;
    if (!want(n, 2) || !as_index(self, args[0], &me) || !as_u32(args[1], &most)) return NULL;
    PyObject *out = PyList_New(0);
    while (out && most-- && !tsq_claim(&self->q, me, &lease)) {
        PyObject *one = claimed(self, me, &lease, 1, 0);
        if (!one || PyList_Append(out, one)) {
            if (PyList_GET_SIZE(out) && !one) { /* what was claimed before must not be lost */
                PyErr_Clear();
                break;
            }
            Py_CLEAR(out);
        }
        Py_XDECREF(one);
    }
    return out;
}

static PyObject *core_take(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, slot;
    uint64_t gen;
    tsq_lease lease;
    if (!want(n, 3) || !as_index(self, args[0], &me) || !as_u32(args[1], &slot) || !as_u64(args[2], &gen)) return NULL;
    if (tsq_take(&self->q, me, slot, gen, &lease)) Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(lease.word);
}

static PyObject *take_step(Core *self, fast_args args, Py_ssize_t n, int (*step)(tsq *, tsq_lease *)) {
    tsq_lease lease;
    if (!want(n, 2) || !as_lease(self, args[0], args[1], &lease)) return NULL;
    int rc = step(&self->q, &lease);
    return rc ? fail(rc) : PyLong_FromUnsignedLongLong(lease.word);
}
static PyObject *core_start(Core *self, fast_args args, Py_ssize_t n) { return take_step(self, args, n, tsq_start); }
static PyObject *core_ack(Core *self, fast_args args, Py_ssize_t n) { return take_step(self, args, n, tsq_ack); }

/* owner, id */
static PyObject *core_time_out(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t owner;
    char *id;
    Py_ssize_t len;
    if (!want(n, 2) || !as_index(self, args[0], &owner) || PyBytes_AsStringAndSize(args[1], &id, &len)) return NULL;
    if (len > (Py_ssize_t)TSQ_MAX_ID) Py_RETURN_FALSE;
    return PyBool_FromLong(tsq_time_out(&self->q, owner, id, (uint32_t)len) == TSQ_OK);
}

/* me, slot, word, result, format */
static PyObject *core_complete(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, format;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    Py_buffer data;
    int rc;
    if (!want(n, 5) || !as_index(self, args[0], &me) || !as_lease(self, args[1], args[2], &lease) ||
        !as_u32(args[4], &format) || PyObject_GetBuffer(args[3], &data, PyBUF_SIMPLE))
        return NULL;
    WITHOUT_GIL_IF(data.len >= RELEASE_GIL_FROM,
                   rc = tsq_complete(&self->q, me, &lease, data.buf, (uint64_t)data.len, format, now_ns(), wake));
    PyBuffer_Release(&data);
    return rc ? fail(rc) : wake_list(self, wake);
}

/* me, slot, word, detail */
static PyObject *core_dead_letter(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    Py_buffer data;
    if (!want(n, 4) || !as_index(self, args[0], &me) || !as_lease(self, args[1], args[2], &lease) ||
        PyObject_GetBuffer(args[3], &data, PyBUF_SIMPLE))
        return NULL;
    int rc = tsq_dead_letter(&self->q, me, &lease, data.buf, (uint64_t)data.len, now_ns(), wake);
    PyBuffer_Release(&data);
    return rc ? fail(rc) : wake_list(self, wake);
}

/* me, slot, word, how */
static PyObject *core_finish(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, how;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    tsq_lease lease;
    if (!want(n, 4) || !as_index(self, args[0], &me) || !as_lease(self, args[1], args[2], &lease) ||
        !as_u32(args[3], &how))
        return NULL;
    int rc = tsq_finish(&self->q, me, &lease, how, now_ns(), wake);
    return rc ? fail(rc) : wake_list(self, wake);
}

/* me, [(slot, word), …], how. Returns how many were not ours any more, and whom to ring. */
static PyObject *core_finish_many(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, how, lost = 0;
    uint64_t now = now_ns(), wake[TSQ_WAKE_WORDS] = {0};
    if (!want(n, 3) || !as_index(self, args[0], &me) || !as_u32(args[2], &how)) return NULL;
    if (!PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "the leases are a list");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[1]); i++) {
        PyObject *pair = PyList_GET_ITEM(args[1], i);
        tsq_lease lease;
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "leases are pairs of slot and word");
            return NULL;
        }
        if (!as_lease(self, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1), &lease)) return NULL;
        int rc = tsq_finish(&self->q, me, &lease, how, now, wake);
        if (rc == TSQ_FENCED) lost++;
        else if (rc) return fail(rc);
    }
    PyObject *who = wake_list(self, wake);
    return who ? Py_BuildValue("IN", lost, who) : NULL;
}

static PyObject *core_release(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me;
    tsq_lease lease;
    tsq_call call;
    if (!want(n, 3) || !as_index(self, args[0], &me) || !as_lease(self, args[1], args[2], &lease)) return NULL;
    int rc = tsq_release(&self->q, me, &lease, now_ns(), &call);
    return rc ? fail(rc) : Py_BuildValue("II", call.sleeper, call.due);
}

/* slot, word: the payload of a message that is not ours, as long as the word does not change. */
static PyObject *core_peek(Core *self, fast_args args, Py_ssize_t n) {
    tsq_lease lease;
    char id[TSQ_MAX_ID];
    uint32_t id_len;
    int rc;
    if (!want(n, 2) || !as_lease(self, args[0], args[1], &lease)) return NULL;
    if (lease.slot >= self->q.geo.slots) return fail(TSQ_BAD_ARGUMENT);
    uint32_t format = tsq_format_of(&self->q, &lease);
    PyObject *payload = read_payload(self, &lease, id, &id_len, &rc);
    if (payload) return Py_BuildValue("IN", format, payload);
    return rc ? fail(rc) : NULL;
}

PyMethodDef lease_methods[] = {METHOD(claim, METH_FASTCALL),       METHOD(claim_or_sleep, METH_FASTCALL),
                               METHOD(claim_many, METH_FASTCALL),
                               METHOD(take, METH_FASTCALL),        METHOD(start, METH_FASTCALL),
                               METHOD(ack, METH_FASTCALL),         METHOD(complete, METH_FASTCALL),
                               METHOD(finish, METH_FASTCALL),      METHOD(finish_many, METH_FASTCALL),
                               METHOD(dead_letter, METH_FASTCALL), METHOD(release, METH_FASTCALL),
                               METHOD(peek, METH_FASTCALL),        METHOD(time_out, METH_FASTCALL), END_OF_METHODS};
