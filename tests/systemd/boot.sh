#!/bin/sh
# The first process of a box (box.py): builds the machine around itself, and becomes its systemd.
#
#   boot.sh FOLDER SYSTEMD     FOLDER/shown: lines of "SOURCE<tab>TARGET", what is shown there
#                              FOLDER/notify: the socket that is told when it is up
#
# In namespaces of its own (pid, mount, cgroup, ipc, uts, net), so that nothing of it can be seen
# from outside or is left behind: all mounts and processes go with this one.
set -eu
folder=$1 systemd=$2 root=$1/root

mount --make-rprivate /

# The machine's own files; what is written goes to memory.
mount -t tmpfs -o mode=0755 box "$folder/memory"
mkdir "$folder/memory/upper" "$folder/memory/work"
mount -t overlay -o "lowerdir=/,upperdir=$folder/memory/upper,workdir=$folder/memory/work" \
    overlay "$root"

for name in proc sys dev run tmp var/tmp; do mkdir -p "$root/$name"; done
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
# Settings of the kernel are everybody's.
for name in sys irq bus fs sysrq-trigger; do
    if [ -e "$root/proc/$name" ]; then
        mount --bind "$root/proc/$name" "$root/proc/$name"
        mount -o remount,bind,ro,nosuid,nodev,noexec "$root/proc/$name"
    fi
done
mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$root/sys"
# Shows our own group as the root of all.
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/var/tmp"

mount -t tmpfs -o mode=0755,nosuid dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5,nosuid,noexec devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
mount -t mqueue -o nosuid,nodev,noexec mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

# A machine that has been set up, and on which nothing was installed yet.
mkdir -p "$root/etc/systemd/system" "$root/etc/systemd/journald.conf.d"
mount -t tmpfs -o mode=0755 tmpfs "$root/etc/systemd/system"
rm -f "$root/etc/machine-id"
tr -d - < /proc/sys/kernel/random/uuid > "$root/etc/machine-id"
: > "$root/etc/fstab"
printf '%s\n' '[Journal]' Storage=volatile ReadKMsg=no Audit=no RateLimitIntervalSec=0 \
    ForwardToWall=no > "$root/etc/systemd/journald.conf.d/box.conf"
printf '%s\n' '[Unit]' Requires=basic.target After=basic.target > "$root/etc/systemd/system/box.target"
# Wanted by the basic target, and either of no use here, or for real devices.
for unit in console-getty.service dev-hugepages.mount getty.target kmod-static-nodes.service \
    ldconfig.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount \
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    systemd-ask-password-console.path systemd-ask-password-wall.path systemd-binfmt.service \
    systemd-firstboot.service systemd-hwdb-update.service systemd-journal-flush.service \
    systemd-logind.service systemd-machine-id-commit.service systemd-modules-load.service \
    systemd-networkd.service systemd-pstore.service systemd-random-seed.service \
    systemd-remount-fs.service systemd-resolved.service systemd-sysctl.service \
    systemd-sysusers.service systemd-timesyncd.service systemd-tmpfiles-clean.timer \
    systemd-tmpfiles-setup-dev.service systemd-udev-trigger.service systemd-udevd.service \
    systemd-update-utmp.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

while IFS='	' read -r source target; do
    mkdir -p "$root$target"
    mount --bind "$source" "$root$target"
    mount -o remount,bind,ro "$root$target"
done < "$folder/shown"
mkdir "$root/run/box" "$root/run/box/before"
touch "$root/run/box/notify"
mount --bind "$folder/notify" "$root/run/box/notify"

cd "$root"
pivot_root . run/box/before
umount -l /run/box/before
rmdir /run/box/before
# Closed, lest somebody waits for the end of what was open.
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    TERM=dumb container=box NOTIFY_SOCKET=/run/box/notify "$systemd" --system --unit=box.target \
    --show-status=no --log-target=journal --log-level=info < /dev/null
