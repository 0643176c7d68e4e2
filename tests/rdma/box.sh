#!/bin/bash
# One of the two emulated machines of tests/rdma.sh, once it has its files: two ports without IPv4, as a Spark's twins are unpacked, each with RDMA over Ethernet in software, told as one adapter's and one
# cage's; an ssh server. The first of them runs the script, whose words leave by the second serial line.
# Environment: box (1 or 2), tree, BUILD, script.
# shellcheck disable=SC2154 # from the kernel's command line, see init.sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
kit=$BUILD/rdma
mkdir -p /dev/shm /dev/pts && mount -t tmpfs shm /dev/shm && mount -t devpts pts /dev/pts
hostname "box$box"
ip link set lo up
mkdir -p /tmp/sys
for port in 0 1; do
    echo 0 >/proc/sys/net/ipv6/conf/eth$port/accept_dad # nobody else could claim an address on this wire
    ip link set eth$port up mtu 9000
    rdma link add rxe$port type rxe netdev eth$port
    echo p0 >/tmp/sys/cage && mount --bind /tmp/sys/cage /sys/class/net/eth$port/phys_port_name
done
mount --bind /sys/class/infiniband/rxe0/sys_image_guid /sys/class/infiniband/rxe1/sys_image_guid

printf '127.0.0.1 localhost\n127.0.1.1 box%s\n' "$box" >/etc/hosts
mkdir -p /root/.ssh /run/sshd
install -m 600 "$kit/key" /root/.ssh/id_ed25519
cp "$kit/key.pub" /root/.ssh/authorized_keys
for i in 1 2; do printf 'Host box%s\nHostName fe80::5054:ff:fe00:%s%%%%eth0\n' $i $i; done >/root/.ssh/config
printf 'StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n' >>/root/.ssh/config
grep -q '^sshd:' /etc/passwd || echo 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
install -m 600 "$kit/key" /tmp/host_key
printf 'HostKey /tmp/host_key\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPermitUserEnvironment yes\n' >/tmp/sshd_config
mkdir -p /usr/lib/openssh && cp -rn "$kit/files/usr/lib/openssh/." /usr/lib/openssh # newer ones are of several programs
LD_LIBRARY_PATH=$kit/files/lib/x86_64-linux-gnu:$kit/files/usr/lib/x86_64-linux-gnu "$kit/files/usr/sbin/sshd" -f /tmp/sshd_config

if [ "$box" = 1 ]; then
    stty -F /dev/ttyS1 raw
    cd "$tree" && bash "$script" >/dev/ttyS1 2>&1
    echo "status $?" >/dev/ttyS1
    echo o >/proc/sysrq-trigger
fi
sleep infinity
