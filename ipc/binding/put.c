/* Putting messages. */
#include "binding.h"

#include <string.h>

static int as_id(PyObject *v, tsq_message *m) {
    Py_ssize_t n;
    m->id = PyUnicode_AsUTF8AndSize(v, &n);
    m->id_len = n > (Py_ssize_t)TSQ_MAX_ID ? TSQ_MAX_ID + 1 : (uint32_t)n;
    return m->id != NULL;
}

/* me, id, payload, format, size, lane, max_deliveries, privileged, due, expires. The buffer has to be
 * released where this returns 1. */
#define MESSAGE_ARGS 10
static int as_message(const Core *self, fast_args args, uint32_t *me, tsq_message *m, Py_buffer *payload) {
    if (!as_index(self, args[0], me) || !as_id(args[1], m) || !as_u32(args[3], &m->format) ||
        !as_u64(args[4], &m->size) || !as_u32(args[5], &m->lane) || !as_u32(args[6], &m->max_deliveries) ||
        !as_u32(args[7], &m->privileged) || !as_u64(args[8], &m->due_ns) || !as_u64(args[9], &m->expires_ns))
        return 0;
    m->now_ns = now_ns();
    if (m->max_deliveries > 255) m->max_deliveries = 255;
    if (PyObject_GetBuffer(args[2], payload, PyBUF_SIMPLE)) return 0;
    m->payload = payload->buf;
    m->len = (uint64_t)payload->len;
    return 1;
}

static int as_sender_id(PyObject *v, uint8_t out[TSQ_SENDER_ID]) {
    if (!PyBytes_Check(v) || PyBytes_GET_SIZE(v) != TSQ_SENDER_ID) {
        PyErr_Format(PyExc_ValueError, "a sender is %u bytes", TSQ_SENDER_ID);
        return 0;
    }
    memcpy(out, PyBytes_AS_STRING(v), TSQ_SENDER_ID);
    return 1;
}

/* After the first `from` arguments: none, or a sender's id and number. */
static int as_sender(Core *self, fast_args args, Py_ssize_t n, Py_ssize_t from, tsq_sender *out, int *given) {
    *given = n == from + 2;
    if (!is_open(self) || !want(n, *given ? from + 2 : from)) return 0;
    return !*given || (as_sender_id(args[from], out->id) && as_u64(args[from + 1], &out->number));
}

static PyObject *core_last_from(Core *self, PyObject *v) {
    uint8_t id[TSQ_SENDER_ID];
    if (!is_open(self) || !as_sender_id(v, id)) return NULL;
    return PyLong_FromUnsignedLongLong(tsq_last_from(&self->q, id));
}

static PyObject *core_put(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me;
    tsq_message m;
    Py_buffer payload;
    tsq_sender from;
    tsq_lease out;
    tsq_call call;
    int rc, has_sender;
    if (!as_sender(self, args, n, MESSAGE_ARGS, &from, &has_sender) || !as_message(self, args, &me, &m, &payload))
        return NULL;
    WITHOUT_GIL_IF(payload.len >= RELEASE_GIL_FROM, rc = has_sender ? tsq_put_from(&self->q, me, &m, &from, &out, &call)
                                                                    : tsq_put(&self->q, me, &m, &out, &call));
    PyBuffer_Release(&payload);
    if (rc) return fail(rc);
    return Py_BuildValue("IKII", out.slot, (unsigned long long)tsq_gen_of(out.word), call.sleeper, call.due);
}

static PyObject *core_reserve(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me;
    tsq_message m;
    Py_buffer payload;
    tsq_lease out;
    int rc;
    if (!want(n, MESSAGE_ARGS) || !as_message(self, args, &me, &m, &payload)) return NULL;
    WITHOUT_GIL_IF(payload.len >= RELEASE_GIL_FROM, rc = tsq_reserve(&self->q, me, &m, &out));
    PyBuffer_Release(&payload);
    if (rc) return fail(rc);
    return Py_BuildValue("IK", out.slot, (unsigned long long)out.word);
}

#define RESERVED_ARGS 3
static int as_reserved(const Core *self, fast_args args, uint32_t *me, tsq_lease *lease) {
    if (!as_index(self, args[0], me) || !as_u32(args[1], &lease->slot) || !as_u64(args[2], &lease->word))
        return 0;
    if (lease->slot < self->q.geo.slots && tsq_state_of(lease->word) == TSQ_WRITING) return 1;
    (void)fail(TSQ_BAD_ARGUMENT);
    return 0;
}

static PyObject *core_commit(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me;
    tsq_sender from;
    tsq_lease lease;
    tsq_call call;
    int has_sender;
    if (!as_sender(self, args, n, RESERVED_ARGS, &from, &has_sender) || !as_reserved(self, args, &me, &lease))
        return NULL;
    if (has_sender) tsq_commit_from(&self->q, me, &lease, &from, &call);
    else tsq_commit(&self->q, me, &lease, &call);
    return Py_BuildValue("II", call.sleeper, call.due);
}

static PyObject *core_give_up(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me;
    tsq_lease lease;
    if (!want(n, RESERVED_ARGS) || !as_reserved(self, args, &me, &lease)) return NULL;
    tsq_give_up(&self->q, me, &lease);
    Py_RETURN_NONE;
}

/* Could this be put at all? 0 with an exception set. Asked of all before the first is put. */
static int is_puttable(const Core *self, PyObject *item) {
    tsq_message m;
    Py_buffer payload;
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
        PyErr_SetString(PyExc_TypeError, "messages are pairs of task id and payload");
        return 0;
    }
    if (!as_id(PyTuple_GET_ITEM(item, 0), &m) || PyObject_GetBuffer(PyTuple_GET_ITEM(item, 1), &payload, PyBUF_SIMPLE))
        return 0;
    uint64_t len = (uint64_t)payload.len;
    PyBuffer_Release(&payload);
    if (!m.id_len || m.id_len > TSQ_MAX_ID) {
        PyErr_Format(err_queue, "task id %R: use 1 to %u bytes", PyTuple_GET_ITEM(item, 0), TSQ_MAX_ID);
        return 0;
    }
    if (!tsq_fits(&self->q, m.id_len, len)) (void)fail(TSQ_TOO_LARGE);
    return tsq_fits(&self->q, m.id_len, len);
}

/* One of many small messages, (id, payload): 0 with an exception set, or 1 and the core's status. */
static int put_one(Core *self, uint32_t me, PyObject *item, tsq_message *m, tsq_lease *out, tsq_call *call, int *rc) {
    Py_buffer payload;
    if (!as_id(PyTuple_GET_ITEM(item, 0), m) || PyObject_GetBuffer(PyTuple_GET_ITEM(item, 1), &payload, PyBUF_SIMPLE))
        return 0;
    m->payload = payload.buf;
    m->len = m->size = (uint64_t)payload.len;
    *rc = tsq_put(&self->q, me, m, out, call);
    PyBuffer_Release(&payload);
    return 1;
}

/* An instance of a subclass of tuple: slot, generation, id. */
static PyObject *ticket_of(PyTypeObject *type, const tsq_lease *lease, PyObject *id) {
    PyObject *slot = PyLong_FromUnsignedLong(lease->slot);
    PyObject *gen = PyLong_FromUnsignedLongLong(tsq_gen_of(lease->word));
    PyObject *ticket = slot && gen ? type->tp_alloc(type, 3) : NULL;
    if (!ticket) {
        Py_XDECREF(slot);
        Py_XDECREF(gen);
        return NULL;
    }
    PyTuple_SET_ITEM(ticket, 0, slot);
    PyTuple_SET_ITEM(ticket, 1, gen);
    PyTuple_SET_ITEM(ticket, 2, Py_NewRef(id));
    return ticket;
}

/* me, [(id, payload), …], lane, max_deliveries, privileged, type of tickets. Puts until one cannot be put. */
static PyObject *core_put_many(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me;
    tsq_message m = {0};
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    int rc = TSQ_OK;
    if (!want(n, 6) || !as_index(self, args[0], &me) || !as_u32(args[2], &m.lane) || !as_u32(args[3], &m.max_deliveries) ||
        !as_u32(args[4], &m.privileged))
        return NULL;
    m.now_ns = now_ns();
    if (m.max_deliveries > 255) m.max_deliveries = 255;
    if (!PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "the messages are a list");
        return NULL;
    }
    if (!PyType_Check(args[5]) || !PyType_IsSubtype((PyTypeObject *)args[5], &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "tickets are tuples");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[1]); i++)
        if (!is_puttable(self, PyList_GET_ITEM(args[1], i))) return NULL;
    PyObject *tickets = PyList_New(0);
    for (Py_ssize_t i = 0; tickets && i < PyList_GET_SIZE(args[1]); i++) {
        tsq_lease out;
        tsq_call call;
        if (!put_one(self, me, PyList_GET_ITEM(args[1], i), &m, &out, &call, &rc)) {
            Py_CLEAR(tickets);
            break;
        }
        if (rc) break;
        if (call.sleeper) wake[call.sleeper / 64] |= UINT64_C(1) << (call.sleeper % 64);
        PyObject *ticket =
            ticket_of((PyTypeObject *)args[5], &out, PyTuple_GET_ITEM(PyList_GET_ITEM(args[1], i), 0));
        if (!ticket || PyList_Append(tickets, ticket)) Py_CLEAR(tickets);
        Py_XDECREF(ticket);
    }
    if (!tickets) return NULL;
    if (rc && rc != TSQ_FULL) {
        Py_DECREF(tickets);
        return fail(rc);
    }
    PyObject *who = wake_list(self, wake);
    return Py_BuildValue("NN", tickets, who);
}

PyMethodDef put_methods[] = {METHOD(put, METH_FASTCALL), METHOD(reserve, METH_FASTCALL), METHOD(commit, METH_FASTCALL),
                             METHOD(give_up, METH_FASTCALL), METHOD(put_many, METH_FASTCALL), METHOD(last_from, METH_O), END_OF_METHODS};
