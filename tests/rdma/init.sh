#!/bin/busybox sh
# shellcheck shell=dash
# First process of an emulated machine (see tests/rdma.sh), in its initramfs: loads what its devices want, and goes on in the files of the machine that emulates it, which it cannot change.
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /lower /upper /root
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" || echo "$module does not load"; done </modules/order
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose files /lower || poweroff -f
mount -t tmpfs -o mode=755 changes /upper
mkdir /upper/changed /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changed,workdir=/upper/work over /root || poweroff -f
mount --move /dev /root/dev && mount -t proc proc /root/proc && mount -t sysfs sys /root/sys
# The kernel hands on words that it does not know, A=B, as variables: box, tree, BUILD, script.
# shellcheck disable=SC2154
exec switch_root /root /bin/bash "$tree/tests/rdma/box.sh"
