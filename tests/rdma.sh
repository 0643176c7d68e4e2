#!/bin/bash
# RDMA without an adapter: two emulated machines with a kernel each, two wires between them, and RDMA over Ethernet in software (Linux's rdma_rxe) on both ends of each. The tests are in
# tests/rdma/between.sh, which runs on one of them. What this shows is that what Tandem decides, hands to UCX and expects of it is right; nothing about speed. test-deadline: 900
# usage: BUILD=DIR tests/rdma.sh [SCRIPT]    after `make deps-rdma all` (make test-rdma does it all); SCRIPT runs there instead of tests/rdma/between.sh
# shellcheck source=tests/t.sh disable=SC1091,SC2154
. "$(dirname "$0")/t.sh"
PATH=$PATH:/usr/sbin:/sbin script=${1:-tests/rdma/between.sh}
BUILD=$(realpath "$BUILD")
kit=$BUILD/rdma
cannot() { skip "two machines with RDMA" "$1"; t_end; }
[ "$(uname -m)" = x86_64 ] || cannot "they are x86-64"
[ "$(id -u)" = 0 ] || cannot "needs root: what is emulated reads this machine's files"
case $PWD$BUILD$script in *[[:space:]]*) cannot "a blank in a path: $PWD, $BUILD, $script" ;; esac
for program in qemu-system-x86_64 busybox modprobe ssh-keygen; do
    command -v $program >/dev/null || cannot "$program is missing (make deps-rdma)"
done
kernel=$(echo "$kit"/files/boot/vmlinuz-*)
[ -e "$kernel" ] || cannot "no kernel for them (make deps-rdma)"
version=${kernel##*vmlinuz-}

initrd=$t_dir/initrd
mkdir -p "$initrd/bin" "$initrd/modules"
cp "$(command -v busybox)" "$initrd/bin/busybox"
install -m 755 tests/rdma/init.sh "$initrd/init"
depmod -b "$kit/files" "$version"
for module in virtio_pci virtio_net 9p 9pnet_virtio overlay crc32_generic rdma_rxe ib_uverbs sch_ingress cls_u32 act_gact; do
    modprobe -d "$kit/files" -S "$version" --show-depends $module || echo "insmod /no-$module"
done 2>"$t_dir/err" | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$t_dir/modules"
while read -r module; do
    cp "$module" "$initrd/modules/" 2>/dev/null || { cat "$t_dir/err" >&2; exit 1; }
    echo "${module##*/}"
done <"$t_dir/modules" >"$initrd/modules/order"
(cd "$initrd" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$t_dir/initrd.gz"
[ -e "$kit/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$kit/key" || exit 1
python3 tests/make_model.py "$kit/tiny.gguf" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 --context 400000 || exit 1

# boot I on|off: machine I, whose end of the wires listens or calls.
boot() {
    local i=$1 port nics=()
    for port in 0 1; do
        nics+=(-netdev "stream,id=wire$port,server=$2,addr.type=unix,addr.path=$t_dir/wire$port"
            -device "virtio-net-pci,netdev=wire$port,mac=52:54:00:00:0$port:0$i,host_mtu=9000,addr=10.$port,multifunction=on")
    done
    setpriv --pdeathsig TERM qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 1 -m 2G -display none -no-reboot -serial "file:$t_dir/console$i" -serial "file:$t_dir/said$i" -monitor "unix:$t_dir/monitor$i,server=on,wait=off" \
        -kernel "$kernel" -initrd "$t_dir/initrd.gz" -append "console=ttyS0 quiet panic=-1 mitigations=off box=$i tree=$PWD BUILD=$BUILD script=$script" \
        -virtfs local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap "${nics[@]}" </dev/null >"$t_dir/qemu$i" 2>&1 &
}
: >"$t_dir/said1"
first='' second=''
trap '[ -z "$first" ] || kill $first $second 2>/dev/null; wait; rm -rf "$t_dir"' EXIT
boot 1 on
first=$!
for ((i = 0; i < 100; i++)); do [ -S "$t_dir/wire1" ] && break; sleep 0.05; done
boot 2 off
second=$!
# What the script says is said here; but "@2 set_link wire0 off" is for the second machine's monitor.
tail -f --pid=$first "$t_dir/said1" | while IFS= read -r line; do
    case $line in
    @[12]\ *) python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(5)
s.connect(sys.argv[1])
def until_it_asks():
    heard = b""
    while not heard.endswith(b"(qemu) "):
        heard += s.recv(999) or sys.exit("the monitor has gone")
until_it_asks()
s.sendall(sys.argv[2].encode() + b"\n")
until_it_asks()' "$t_dir/monitor${line:1:1}" "${line:3}" ;;
    status* | *" passed, "*) ;;
    *) echo "$line" ;;
    esac
done
wait $first
sums=$(tail -n 2 "$t_dir/said1")
if [[ $sums =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped ]]; then
    # shellcheck disable=SC2034 # of t.sh
    t_passed=${BASH_REMATCH[1]} t_failed=${BASH_REMATCH[2]} t_skipped=${BASH_REMATCH[3]}
else
    t_fail "the machines did not get to the end"
    tail -n 30 "$t_dir"/qemu? "$t_dir"/console?
fi
t_end
