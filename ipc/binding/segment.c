/* Segments: their size, their first state, mapping one. */
#include "binding.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "away.h"
#include "guard.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; older ones refuse it, which costs speed only */
#endif

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
    int fd, checked;
    PyObject *arg;
    const char *boot;
    Py_ssize_t boot_len;
    tsq_geometry geo;
    tsq_layout at;
    if (!PyArg_ParseTuple(args, "iOy#p", &fd, &arg, &boot, &boot_len, &checked)) return NULL;
    if (boot_len != 16) return fail(TSQ_BAD_ARGUMENT);
    if (!parse_layout(arg, &geo, &at)) return NULL;
    void *base = mmap(NULL, at.total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    Py_BEGIN_ALLOW_THREADS;
    /* Reserved pages are cleared when they are first touched: now, rather than by a put or a repair. */
    (void)madvise(base, at.total, MADV_POPULATE_WRITE);
    tsq_init(base, &geo, &at, (const uint8_t *)boot);
    if (checked) tsq_keep_checksums(base);
    munmap(base, at.total);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* Whether what lies in this filesystem is gone after a reboot. */
static PyObject *mod_is_volatile(PyObject *Py_UNUSED(mod), PyObject *arg) {
    struct statfs st;
    int fd = PyObject_AsFileDescriptor(arg);
    if (fd < 0) return NULL;
    if (fstatfs(fd, &st)) return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(st.f_type == TMPFS_MAGIC || st.f_type == RAMFS_MAGIC);
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

static PyObject *mod_fork_away(PyObject *Py_UNUSED(mod), PyObject *Py_UNUSED(ignored)) {
    pid_t between = 0;
    if (PySys_Audit("os.fork", NULL) < 0) return NULL;
    PyOS_BeforeFork();
    pid_t pid = fork_away(&between);
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    if (pid < 0) {
        errno = -pid;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_BuildValue("ii", (int)pid, (int)between);
}

PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
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

void core_dealloc(Core *self) {
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

/* The pages stay what they are; only our page table forgets them, and so do the books on who uses memory. */
static PyObject *core_unpage(Core *self, PyObject *Py_UNUSED(ignored)) {
    if (!is_open(self)) return NULL;
    (void)madvise(self->q.base, self->size, MADV_DONTNEED);
    Py_RETURN_NONE;
}

PyMethodDef segment_functions[] = {{"segment_size", mod_segment_size, METH_O, NULL},
                                   {"initialize", mod_initialize, METH_VARARGS, NULL},
                                   {"is_volatile", mod_is_volatile, METH_O, NULL},
                                   {"fork_away", mod_fork_away, METH_NOARGS, NULL},
                                   {"guard_parent", mod_guard_parent, METH_VARARGS, NULL},
                                   END_OF_METHODS};

PyMethodDef segment_methods[] = {METHOD(close, METH_NOARGS), METHOD(forget, METH_NOARGS), METHOD(geometry, METH_NOARGS),
                                 METHOD(boot_id, METH_NOARGS), METHOD(unpage, METH_NOARGS), END_OF_METHODS};
