/* Sleeping, waking, and waiting for room. */
#include "binding.h"

#include <unistd.h>

static uint64_t news_of(Core *self) {
    tsq *q = &self->q;
    uint64_t h = atomic_load(tsq_changes(q));
    h = h * 31 + atomic_load(tsq_custodian(q));
    h = h * 31 + atomic_load(tsq_deputy(q));
    h = h * 31 + atomic_load(tsq_supervisor(q));
    h = h * 31 + atomic_load(tsq_result_ttl(q));
    return h * 31 + atomic_load(tsq_next_due(q));
}

/* me, fd of the doorbell: empties it and asks to be rung again, then says what there is to look at. In
 * this order: what happens after the look rings again. */
static PyObject *core_answer(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, fd;
    char rings[512];
    if (!want(n, 2) || !as_index(self, args[0], &me) || !as_u32(args[1], &fd)) return NULL;
    (void)!read((int)fd, rings, sizeof rings); /* what is left makes it readable again */
    tsq_arm(&self->q, me);
    uint64_t news = news_of(self);
    long what = (tsq_has_completions(&self->q, me) ? ENDED : 0) | (news != self->seen_news ? NEWS : 0);
    self->seen_news = news;
    return PyLong_FromLong(what);
}

/* Functions of one participant. */
#define OF_ONE(name, call)                                                                         \
    static PyObject *core_##name(Core *self, PyObject *arg) {                                      \
        uint32_t me;                                                                               \
        if (!as_index(self, arg, &me)) return NULL;                                                \
        call;                                                                                      \
    }

OF_ONE(wake_up, tsq_wake_up(&self->q, me); Py_RETURN_NONE)
OF_ONE(arm, tsq_arm(&self->q, me); Py_RETURN_NONE)
OF_ONE(disarm, return PyBool_FromLong(tsq_disarm(&self->q, me)))
OF_ONE(empty_others, return PyLong_FromUnsignedLong(tsq_empty_others(&self->q, me)))
OF_ONE(ignore_unanswering, tsq_ignore_unanswering(&self->q, me); Py_RETURN_NONE)
OF_ONE(queue_up, tsq_queue_up(&self->q, me); Py_RETURN_NONE)
OF_ONE(step_out, tsq_step_out(&self->q, me); Py_RETURN_NONE)
OF_ONE(is_waiting, return PyBool_FromLong(tsq_is_waiting(&self->q, me)))

static int as_flagged(const Core *self, fast_args args, Py_ssize_t n, uint32_t *me, uint32_t *flag) {
    return want(n, 2) && as_index(self, args[0], me) && as_u32(args[1], flag);
}

static PyObject *core_sleep(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, is_empty;
    if (!as_flagged(self, args, n, &me, &is_empty)) return NULL;
    tsq_sleep(&self->q, me, (int)is_empty);
    Py_RETURN_NONE;
}

static PyObject *core_set_empty(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, is_empty;
    if (!as_flagged(self, args, n, &me, &is_empty)) return NULL;
    tsq_set_empty(&self->q, me, (int)is_empty);
    Py_RETURN_NONE;
}

static PyObject *core_pick_sleeper(Core *self, fast_args args, Py_ssize_t n) {
    uint32_t me, empty_only;
    if (!as_flagged(self, args, n, &me, &empty_only)) return NULL;
    return PyLong_FromUnsignedLong(tsq_pick_sleeper(&self->q, me, (int)empty_only));
}

static PyObject *core_ready_hints(Core *self, PyObject *Py_UNUSED(ignored)) {
    if (!is_open(self)) return NULL;
    return PyLong_FromUnsignedLong(tsq_ready_hints(&self->q));
}

static PyObject *core_call_next(Core *self, PyObject *Py_UNUSED(ignored)) {
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    if (!is_open(self)) return NULL;
    tsq_call_next(&self->q, wake);
    return wake_list(self, wake);
}

PyMethodDef waking_methods[] = {METHOD(sleep, METH_FASTCALL),     METHOD(wake_up, METH_O),
                                METHOD(answer, METH_FASTCALL),
                                METHOD(set_empty, METH_FASTCALL), METHOD(pick_sleeper, METH_FASTCALL),
                                METHOD(ready_hints, METH_NOARGS), METHOD(empty_others, METH_O),
                                METHOD(arm, METH_O),              METHOD(disarm, METH_O),
                                METHOD(queue_up, METH_O),         METHOD(step_out, METH_O),
                                METHOD(is_waiting, METH_O),       METHOD(call_next, METH_NOARGS),
                                METHOD(ignore_unanswering, METH_O), END_OF_METHODS};
