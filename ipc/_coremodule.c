/* Binding of the queue's core: class Core, one mapping of one segment.
 *
 * Thin on purpose: it maps the file, converts arguments, and turns status codes into the exceptions of
 * taskiq_supervise.ipc.errors. Participants, lock bytes, doorbells and every policy are Python.
 * The GIL is held through an operation (hundreds of nanoseconds); it is let go only around copies of
 * more than 64 KiB, while `busy` keeps close() from unmapping under them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "core/guard.h"
#include "core/tsq.h"

#define RELEASE_GIL_FROM (64 * 1024)
#define SMALL 4096

static PyObject *err_full, *err_large, *err_lost, *err_segment;

typedef struct {
    PyObject_HEAD tsq q;
    uint64_t size;
    int busy;
} Core;

static PyObject *fail(int rc) {
    switch (rc) {
    case TSQ_FULL: PyErr_SetString(err_full, "the queue is full: no free slot or block"); break;
    case TSQ_TOO_LARGE: PyErr_SetString(err_large, "the payload is larger than the queue's blocks can hold"); break;
    case TSQ_FENCED: PyErr_SetString(err_lost, "the lease is not held any more"); break;
    case TSQ_NO_MEMORY: PyErr_NoMemory(); break;
    case TSQ_GONE: PyErr_SetString(err_segment, "the slot's contents are out of bounds: the segment is damaged"); break;
    default: PyErr_SetString(PyExc_ValueError, "argument out of range, or the wrong step for this lease"); break;
    }
    return NULL;
}

static int is_open(const Core *self) {
    if (self->q.base) return 1;
    PyErr_SetString(PyExc_ValueError, "operation on a closed queue");
    return 0;
}

/* ---- geometry ---- */

static int parse_geometry(PyObject *arg, tsq_geometry *geo) {
    PyObject *blocks;
    memset(geo, 0, sizeof *geo);
    if (!PyArg_ParseTuple(arg, "IIIO!", &geo->slots, &geo->inline_size, &geo->participants, &PyTuple_Type, &blocks))
        return 0;
    Py_ssize_t n = PyTuple_GET_SIZE(blocks);
    if (n > (Py_ssize_t)TSQ_MAX_CLASSES) {
        PyErr_Format(PyExc_ValueError, "%zd block classes, at most %u", n, TSQ_MAX_CLASSES);
        return 0;
    }
    geo->classes = (uint32_t)n;
    for (Py_ssize_t i = 0; i < n; i++)
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(blocks, i), "II", &geo->block[i].size, &geo->block[i].count)) return 0;
    return 1;
}

static int parse_layout(PyObject *arg, tsq_geometry *geo, tsq_layout *at) {
    if (!parse_geometry(arg, geo)) return 0;
    if (tsq_layout_of(geo, at)) {
        PyErr_SetString(PyExc_ValueError, "geometry out of range");
        return 0;
    }
    return 1;
}

static PyObject *mod_segment_size(PyObject *Py_UNUSED(mod), PyObject *arg) {
    tsq_geometry geo;
    tsq_layout at;
    if (!parse_layout(arg, &geo, &at)) return NULL;
    return PyLong_FromUnsignedLongLong(at.total);
}

static PyObject *mod_initialize(PyObject *Py_UNUSED(mod), PyObject *args) {
    int fd;
    PyObject *arg;
    const char *boot;
    Py_ssize_t boot_len;
    tsq_geometry geo;
    tsq_layout at;
    if (!PyArg_ParseTuple(args, "iOy#", &fd, &arg, &boot, &boot_len)) return NULL;
    if (boot_len != 16) return fail(TSQ_BAD_ARGUMENT);
    if (!parse_layout(arg, &geo, &at)) return NULL;
    void *base = mmap(NULL, at.total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    Py_BEGIN_ALLOW_THREADS;
    tsq_init(base, &geo, &at, (const uint8_t *)boot);
    munmap(base, at.total);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *mod_guard_parent(PyObject *Py_UNUSED(mod), PyObject *args) {
    int parent;
    double seconds;
    if (!PyArg_ParseTuple(args, "id", &parent, &seconds)) return NULL;
    if (!(seconds >= 0 && seconds < 1e6)) return fail(TSQ_BAD_ARGUMENT);
    int rc = guard_parent(parent, (int)(seconds * 1000));
    if (rc) {
        errno = -rc;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

/* ---- Core: life ---- */

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
    static char *names[] = {"fd", NULL};
    int fd;
    struct stat st;
    char why[200];
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "i", names, &fd)) return NULL;
    if (fstat(fd, &st)) return PyErr_SetFromErrno(PyExc_OSError);
    if (st.st_size <= 0) {
        PyErr_SetString(err_segment, "it is empty");
        return NULL;
    }
    uint64_t size = (uint64_t)st.st_size;
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    Core *self = (Core *)type->tp_alloc(type, 0);
    if (!self || tsq_attach(&self->q, base, size, why, sizeof why)) {
        munmap(base, size);
        if (self) PyErr_SetString(err_segment, why);
        Py_XDECREF(self);
        return NULL;
    }
    self->size = size;
    return (PyObject *)self;
}

static int core_unmap(Core *self) {
    if (self->q.base && self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is copying a payload: close the queue after it");
        return 0;
    }
    if (self->q.base) munmap(self->q.base, self->size);
    self->q.base = NULL;
    return 1;
}

static void core_dealloc(Core *self) {
    self->busy = 0; /* a copying thread holds a reference, so there is none */
    (void)core_unmap(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *core_close(Core *self, PyObject *Py_UNUSED(ignored)) {
    if (!core_unmap(self)) return NULL;
    Py_RETURN_NONE;
}

/* In a forked child the thread that was copying is not there: nobody uses the mapping any more. */
static PyObject *core_forget(Core *self, PyObject *Py_UNUSED(ignored)) {
    self->busy = 0;
    (void)core_unmap(self);
    Py_RETURN_NONE;
}

static PyObject *core_geometry(Core *self, PyObject *Py_UNUSED(ignored)) {
    if (!is_open(self)) return NULL;
    const tsq_geometry *g = &self->q.geo;
    PyObject *blocks = PyTuple_New(g->classes);
    if (!blocks) return NULL;
    for (uint32_t i = 0; i < g->classes; i++) {
        PyObject *pair = Py_BuildValue("II", g->block[i].size, g->block[i].count);
        if (!pair) {
            Py_DECREF(blocks);
            return NULL;
        }
        PyTuple_SET_ITEM(blocks, i, pair);
    }
    return Py_BuildValue("IIIN", g->slots, g->inline_size, g->participants, blocks);
}

static PyObject *core_boot_id(Core *self, PyObject *Py_UNUSED(ignored)) {
    uint8_t id[16];
    if (!is_open(self)) return NULL;
    tsq_boot_id(&self->q, id);
    return PyBytes_FromStringAndSize((const char *)id, sizeof id);
}

/* ---- participants ---- */

static PyObject *core_register(Core *self, PyObject *args) {
    unsigned me, role, pid, guardian, tag;
    if (!is_open(self) || !PyArg_ParseTuple(args, "IIIII", &me, &role, &pid, &guardian, &tag)) return NULL;
    int rc = tsq_register(&self->q, me, role, pid, guardian, tag);
    if (rc) return fail(rc);
    Py_RETURN_NONE;
}

static PyObject *core_participant(Core *self, PyObject *arg) {
    tsq_participant p;
    unsigned long i = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred() || !is_open(self)) return NULL;
    int rc = tsq_participant_at(&self->q, (uint32_t)i, &p);
    if (rc) return fail(rc);
    return Py_BuildValue("NIIIIN", PyBool_FromLong(p.live), p.role, p.pid, p.guardian, p.tag,
                         PyLong_FromUnsignedLong(p.generation));
}

#define ONE_INDEX(name, call)                                                                      \
    static PyObject *name(Core *self, PyObject *arg) {                                             \
        unsigned long i = PyLong_AsUnsignedLong(arg);                                              \
        if (PyErr_Occurred() || !is_open(self)) return NULL;                                       \
        if (i >= self->q.geo.participants) return fail(TSQ_BAD_ARGUMENT);                          \
        uint32_t me = (uint32_t)i;                                                                 \
        call;                                                                                      \
    }

ONE_INDEX(core_unregister, tsq_unregister(&self->q, me); Py_RETURN_NONE)
ONE_INDEX(core_explain, tsq_explain(&self->q, me); Py_RETURN_NONE)
ONE_INDEX(core_wake_up, tsq_wake_up(&self->q, me); Py_RETURN_NONE)
ONE_INDEX(core_arm, tsq_arm(&self->q, me); Py_RETURN_NONE)
ONE_INDEX(core_disarm, return PyBool_FromLong(tsq_disarm(&self->q, me)))
ONE_INDEX(core_empty_others, return PyLong_FromUnsignedLong(tsq_empty_others(&self->q, me)))
ONE_INDEX(core_ignore_unanswering, tsq_ignore_unanswering(&self->q, me); Py_RETURN_NONE)

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

/* ---- messages ---- */

static PyObject *core_put(Core *self, PyObject *args) {
    unsigned me, max_deliveries;
    Py_buffer payload;
    unsigned long long now;
    const char *id;
    Py_ssize_t id_len;
    tsq_lease out;
    uint32_t wake;
    if (!is_open(self) || !PyArg_ParseTuple(args, "Iy#y*IK", &me, &id, &id_len, &payload, &max_deliveries, &now))
        return NULL;
    tsq_message m = {.id = id,
                     .id_len = id_len > (Py_ssize_t)TSQ_MAX_ID ? TSQ_MAX_ID + 1 : (uint32_t)id_len,
                     .payload = payload.buf,
                     .len = (uint64_t)payload.len,
                     .max_deliveries = max_deliveries,
                     .now_ns = now};
    int rc;
    if (payload.len < RELEASE_GIL_FROM) {
        rc = tsq_put(&self->q, me, &m, &out, &wake);
    } else {
        self->busy++;
        Py_BEGIN_ALLOW_THREADS;
        rc = tsq_put(&self->q, me, &m, &out, &wake);
        Py_END_ALLOW_THREADS;
        self->busy--;
    }
    PyBuffer_Release(&payload);
    if (rc) return fail(rc);
    return Py_BuildValue("IKI", out.slot, (unsigned long long)tsq_gen_of(out.word), wake);
}

static PyObject *core_claim(Core *self, PyObject *args) {
    tsq_lease lease;
    char id[TSQ_MAX_ID], small[SMALL];
    uint32_t id_len = 0;
    uint64_t len = 0;
    PyObject *payload = NULL;
    unsigned me;
    int again;
    if (!is_open(self) || !PyArg_ParseTuple(args, "Ip", &me, &again)) return NULL;
    if (me >= self->q.geo.participants) return fail(TSQ_BAD_ARGUMENT);
    if (again ? tsq_claim(&self->q, me, &lease) : tsq_claim_new(&self->q, me, &lease)) Py_RETURN_NONE;
    int rc = tsq_read_request(&self->q, &lease, id, &id_len, small, sizeof small, &len);
    if (!rc) payload = PyBytes_FromStringAndSize(small, (Py_ssize_t)len);
    if (rc == TSQ_TOO_LARGE) {
        payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
        if (payload) {
            char *to = PyBytes_AS_STRING(payload);
            uint64_t room = len;
            self->busy++;
            Py_BEGIN_ALLOW_THREADS;
            rc = tsq_read_request(&self->q, &lease, id, &id_len, to, room, &len);
            Py_END_ALLOW_THREADS;
            self->busy--;
        }
    }
    if (payload && !rc)
        return Py_BuildValue("IKy#NI", lease.slot, (unsigned long long)lease.word, id, (Py_ssize_t)id_len, payload,
                             tsq_attempt_of(lease.word));
    Py_XDECREF(payload);
    uint32_t wake;
    if (rc == TSQ_GONE) { /* damaged: kept as a dead letter, or every worker would stumble over it */
        static const char text[] = "\x04the slot's contents are out of bounds";
        uint64_t ring[TSQ_WAKE_WORDS] = {0};
        (void)tsq_dead_letter(&self->q, me, &lease, text, sizeof text - 1, 0, ring);
        return fail(rc);
    }
    if (!rc || rc == TSQ_TOO_LARGE) (void)tsq_release(&self->q, me, &lease, &wake); /* no memory for it */
    return PyErr_Occurred() ? NULL : fail(rc);
}

typedef int (*step)(tsq *, tsq_lease *);

static PyObject *take_step(Core *self, PyObject *args, step f) {
    unsigned i;
    unsigned long long word;
    if (!is_open(self) || !PyArg_ParseTuple(args, "IK", &i, &word)) return NULL;
    tsq_lease lease = {.slot = i, .word = word};
    int rc = f(&self->q, &lease);
    if (rc) return fail(rc);
    return PyLong_FromUnsignedLongLong(lease.word);
}
static PyObject *core_start(Core *self, PyObject *args) { return take_step(self, args, tsq_start); }
static PyObject *core_ack(Core *self, PyObject *args) { return take_step(self, args, tsq_ack); }

/* The participants whose bit is set, as a tuple: those to ring. */
static PyObject *wake_list(const uint64_t wake[TSQ_WAKE_WORDS], uint32_t participants) {
    uint32_t who[TSQ_MAX_PARTICIPANTS], n = 0;
    for (uint32_t w = 0; w < participants / 64; w++)
        for (uint64_t v = wake[w]; v; v &= v - 1) who[n++] = w * 64 + (uint32_t)__builtin_ctzll(v);
    PyObject *out = PyTuple_New(n);
    for (uint32_t i = 0; out && i < n; i++) {
        PyObject *v = PyLong_FromUnsignedLong(who[i]);
        if (!v) {
            Py_CLEAR(out);
            break;
        }
        PyTuple_SET_ITEM(out, i, v);
    }
    return out;
}

typedef int (*ending)(tsq *, uint32_t, const tsq_lease *, const void *, uint64_t, uint64_t, uint64_t *);

static PyObject *end_with_data(Core *self, PyObject *args, ending f) {
    unsigned me, i;
    unsigned long long word, now;
    Py_buffer data;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    if (!is_open(self) || !PyArg_ParseTuple(args, "IIKy*K", &me, &i, &word, &data, &now)) return NULL;
    tsq_lease lease = {.slot = i, .word = word};
    int rc;
    if (data.len < RELEASE_GIL_FROM) {
        rc = f(&self->q, me, &lease, data.buf, (uint64_t)data.len, now, wake);
    } else {
        self->busy++;
        Py_BEGIN_ALLOW_THREADS;
        rc = f(&self->q, me, &lease, data.buf, (uint64_t)data.len, now, wake);
        Py_END_ALLOW_THREADS;
        self->busy--;
    }
    PyBuffer_Release(&data);
    return rc ? fail(rc) : wake_list(wake, self->q.geo.participants);
}
static PyObject *core_complete(Core *self, PyObject *args) { return end_with_data(self, args, tsq_complete); }
static PyObject *core_dead_letter(Core *self, PyObject *args) { return end_with_data(self, args, tsq_dead_letter); }

static PyObject *core_finish(Core *self, PyObject *args) {
    unsigned me, i;
    int keep;
    unsigned long long word, now;
    uint64_t wake[TSQ_WAKE_WORDS] = {0};
    if (!is_open(self) || !PyArg_ParseTuple(args, "IIKpK", &me, &i, &word, &keep, &now)) return NULL;
    tsq_lease lease = {.slot = i, .word = word};
    int rc = tsq_finish(&self->q, me, &lease, keep, now, wake);
    return rc ? fail(rc) : wake_list(wake, self->q.geo.participants);
}

static PyObject *core_release(Core *self, PyObject *args) {
    unsigned me, i;
    unsigned long long word;
    uint32_t wake;
    if (!is_open(self) || !PyArg_ParseTuple(args, "IIK", &me, &i, &word)) return NULL;
    tsq_lease lease = {.slot = i, .word = word};
    int rc = tsq_release(&self->q, me, &lease, &wake);
    return rc ? fail(rc) : PyLong_FromUnsignedLong(wake);
}

/* ---- outcomes ---- */

static PyObject *core_find(Core *self, PyObject *arg) {
    char *id;
    Py_ssize_t n;
    uint32_t i;
    uint64_t gen;
    if (!is_open(self) || PyBytes_AsStringAndSize(arg, &id, &n)) return NULL;
    if (n > (Py_ssize_t)TSQ_MAX_ID || tsq_find(&self->q, id, (uint32_t)n, &i, &gen)) Py_RETURN_NONE;
    return Py_BuildValue("IK", i, (unsigned long long)gen);
}

static PyObject *core_outcome(Core *self, PyObject *args) {
    unsigned i;
    unsigned long long gen;
    tsq_outcome o;
    char small[SMALL];
    PyObject *data = NULL;
    if (!is_open(self) || !PyArg_ParseTuple(args, "IK", &i, &gen)) return NULL;
    int rc = tsq_get_outcome(&self->q, i, gen, &o, small, sizeof small);
    if (rc == TSQ_PENDING) Py_RETURN_NONE;
    if (!rc) data = PyBytes_FromStringAndSize(small, (Py_ssize_t)o.len);
    if (rc == TSQ_TOO_LARGE) {
        data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)o.len);
        if (!data) return NULL;
        char *to = PyBytes_AS_STRING(data);
        uint64_t room = o.len;
        self->busy++;
        Py_BEGIN_ALLOW_THREADS;
        rc = tsq_get_outcome(&self->q, i, gen, &o, to, room);
        Py_END_ALLOW_THREADS;
        self->busy--;
    }
    if (rc) {
        Py_XDECREF(data);
        PyErr_SetString(PyExc_LookupError, "the outcome has left its slot");
        return NULL;
    }
    if (!data) return NULL;
    return Py_BuildValue("IIKKN", o.kind, o.attempts, (unsigned long long)o.death, (unsigned long long)o.done_ns, data);
}

static PyObject *core_watch(Core *self, PyObject *args) {
    unsigned me, i;
    if (!is_open(self) || !PyArg_ParseTuple(args, "II", &me, &i)) return NULL;
    tsq_watch(&self->q, me, i);
    Py_RETURN_NONE;
}

static PyObject *core_unwatch(Core *self, PyObject *args) {
    unsigned me, i;
    if (!is_open(self) || !PyArg_ParseTuple(args, "II", &me, &i)) return NULL;
    tsq_unwatch(&self->q, me, i);
    Py_RETURN_NONE;
}

static PyObject *core_completions(Core *self, PyObject *arg) {
    uint32_t slots[1024];
    unsigned long me = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred() || !is_open(self)) return NULL;
    if (me >= self->q.geo.participants) return fail(TSQ_BAD_ARGUMENT);
    uint32_t n = tsq_completions(&self->q, (uint32_t)me, slots, 1024);
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

/* ---- waking and sleeping ---- */

static PyObject *core_sleep(Core *self, PyObject *args) {
    unsigned me;
    int is_empty;
    if (!is_open(self) || !PyArg_ParseTuple(args, "Ip", &me, &is_empty)) return NULL;
    if (me >= self->q.geo.participants) return fail(TSQ_BAD_ARGUMENT);
    tsq_sleep(&self->q, me, is_empty);
    Py_RETURN_NONE;
}

static PyObject *core_set_empty(Core *self, PyObject *args) {
    unsigned me;
    int is_empty;
    if (!is_open(self) || !PyArg_ParseTuple(args, "Ip", &me, &is_empty)) return NULL;
    if (me >= self->q.geo.participants) return fail(TSQ_BAD_ARGUMENT);
    tsq_set_empty(&self->q, me, is_empty);
    Py_RETURN_NONE;
}

static PyObject *core_pick_sleeper(Core *self, PyObject *args) {
    unsigned me;
    int empty_only;
    if (!is_open(self) || !PyArg_ParseTuple(args, "Ip", &me, &empty_only)) return NULL;
    if (me >= self->q.geo.participants) return fail(TSQ_BAD_ARGUMENT);
    return PyLong_FromUnsignedLong(tsq_pick_sleeper(&self->q, me, empty_only));
}

static PyObject *core_ready_hints(Core *self, PyObject *Py_UNUSED(ignored)) {
    if (!is_open(self)) return NULL;
    return PyLong_FromUnsignedLong(tsq_ready_hints(&self->q));
}

/* ---- repair ---- */

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
    PyObject *repairs = PyList_New(0);
    for (uint32_t i = 0; repairs && i < n; i++) {
        char id[TSQ_MAX_ID];
        uint32_t id_len = 0;
        if (tsq_id_of(&self->q, list[i].slot, tsq_gen_of(list[i].word), id, &id_len)) continue;
        PyObject *item = Py_BuildValue("Iy#", list[i].kind, id, (Py_ssize_t)id_len);
        if (!item || PyList_Append(repairs, item)) Py_CLEAR(repairs);
        Py_XDECREF(item);
    }
    free(list);
    if (!repairs) return NULL;
    PyObject *who = wake_list(wake, self->q.geo.participants);
    if (!who) {
        Py_DECREF(repairs);
        return NULL;
    }
    return Py_BuildValue("NN", repairs, who);
}

static PyObject *core_audit(Core *self, PyObject *args) {
    unsigned me;
    unsigned long long now, result_ttl, dead_ttl;
    uint32_t expired, rehinted;
    if (!is_open(self) || !PyArg_ParseTuple(args, "IKKK", &me, &now, &result_ttl, &dead_ttl)) return NULL;
    int rc = tsq_audit(&self->q, me, now, result_ttl, dead_ttl, &expired, &rehinted);
    return rc ? fail(rc) : Py_BuildValue("II", expired, rehinted);
}

static PyObject *core_counts(Core *self, PyObject *Py_UNUSED(ignored)) {
    tsq_counts c;
    if (!is_open(self)) return NULL;
    tsq_count(&self->q, &c);
    return Py_BuildValue("IIIIIIIII", c.free, c.writing, c.ready, c.delayed, c.leased, c.running, c.acked, c.done, c.dead);
}

/* ---- module ---- */

#define M(name, flags) {#name, (PyCFunction)(void (*)(void))core_##name, flags, NULL}
static PyMethodDef core_methods[] = {
    M(close, METH_NOARGS), M(forget, METH_NOARGS), M(geometry, METH_NOARGS), M(boot_id, METH_NOARGS),
    M(register, METH_VARARGS), M(unregister, METH_O), M(participant, METH_O), M(explain, METH_O),
    M(put, METH_VARARGS), M(claim, METH_VARARGS), M(start, METH_VARARGS), M(ack, METH_VARARGS),
    M(complete, METH_VARARGS), M(finish, METH_VARARGS), M(dead_letter, METH_VARARGS), M(release, METH_VARARGS),
    M(find, METH_O), M(outcome, METH_VARARGS), M(watch, METH_VARARGS), M(unwatch, METH_VARARGS), M(completions, METH_O),
    M(sleep, METH_VARARGS), M(wake_up, METH_O), M(set_empty, METH_VARARGS), M(pick_sleeper, METH_VARARGS),
    M(ready_hints, METH_NOARGS), M(empty_others, METH_O), M(ignore_unanswering, METH_O),
    M(arm, METH_O), M(disarm, METH_O),
    M(recover, METH_VARARGS), M(audit, METH_VARARGS), M(counts, METH_NOARGS),
    {NULL, NULL, 0, NULL}};

#define N(name) {#name, (getter)core_##name##_get, (setter)core_##name##_set, NULL, NULL}
static PyGetSetDef core_numbers[] = {N(custodian), N(supervisor), N(max_deliveries), N(changes), {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject core_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "taskiq_supervise.ipc._core.Core",
    .tp_basicsize = sizeof(Core),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "One mapping of one queue segment.",
    .tp_new = core_new,
    .tp_dealloc = (destructor)core_dealloc,
    .tp_methods = core_methods,
    .tp_getset = core_numbers,
};

static PyMethodDef module_methods[] = {{"segment_size", mod_segment_size, METH_O, NULL},
                                       {"initialize", mod_initialize, METH_VARARGS, NULL},
                                       {"guard_parent", mod_guard_parent, METH_VARARGS, NULL},
                                       {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_core", .m_size = -1, .m_methods = module_methods};

PyMODINIT_FUNC PyInit__core(void) {
    PyObject *errors = PyImport_ImportModule("taskiq_supervise.ipc.errors");
    if (!errors) return NULL;
    err_full = PyObject_GetAttrString(errors, "QueueFull");
    err_large = PyObject_GetAttrString(errors, "PayloadTooLarge");
    err_lost = PyObject_GetAttrString(errors, "LeaseLost");
    err_segment = PyObject_GetAttrString(errors, "SegmentError");
    Py_DECREF(errors);
    if (!err_full || !err_large || !err_lost || !err_segment) return NULL;
    if (PyType_Ready(&core_type)) return NULL;
    PyObject *mod = PyModule_Create(&module);
    if (!mod) return NULL;
    if (PyModule_AddObjectRef(mod, "Core", (PyObject *)&core_type) ||
        PyModule_AddIntConstant(mod, "MAX_ID", TSQ_MAX_ID) || PyModule_AddIntConstant(mod, "MAX_SLOTS", TSQ_MAX_SLOTS) ||
        PyModule_AddIntConstant(mod, "MAX_PARTICIPANTS", TSQ_MAX_PARTICIPANTS)) {
        Py_DECREF(mod);
        return NULL;
    }
    return mod;
}
