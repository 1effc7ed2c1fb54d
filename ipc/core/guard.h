/* The end of a process whose parent has ended, whatever it is busy with. */
#ifndef GUARD_H
#define GUARD_H

/* When the process `parent` ends, ours gets `milliseconds` to end by itself; then its process group is
 * killed. 0, or a negative errno. Once per process. */
int guard_parent(int parent, int milliseconds);

#endif
