# The first process of a node, as root in fresh mount, network, process, UTS, IPC and cgroup
# namespaces: gives the node a root file system of its own over the machine's, then sleeps.
# Arguments: directory of the node, name of the node, directory of the programs, then what is kept
# of the node across a boot.
set -eu
dir=$1 name=$2 programs=$3
shift 3

# What the node writes goes to memory, except for what it keeps.
mount -t tmpfs -o mode=755 tmpfs "$dir/volatile"
mkdir "$dir/volatile/upper" "$dir/volatile/work" "$dir/volatile/root" "$dir/volatile/sysctl"
root=$dir/volatile/root
mount -t overlay -o "lowerdir=/,upperdir=$dir/volatile/upper,workdir=$dir/volatile/work" node "$root"

mount -t proc proc "$root/proc"
# Of this network namespace, and with a place for eBPF objects that no other node sees.
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
# The cgroup namespace shows the node's own subtree as the root.
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
    while read -r _ at kind options _; do
        case $kind in cgroup | cgroup2) ;; *) continue ;; esac
        case $at in /sys/fs/cgroup/*) ;; *) continue ;; esac
        mkdir -p "$root$at"
        if [ "$kind" = cgroup2 ]; then
            mount -t cgroup2 cgroup2 "$root$at"
        else
            wanted=
            for option in $(echo "$options" | tr , ' '); do
                case $option in
                rw | ro | relatime | noatime | nosuid | nodev | noexec | xattr | clone_children) ;;
                release_agent=*) ;;
                *) wanted=$wanted,$option ;;
                esac
            done
            mount -t cgroup -o "${wanted#,}" cgroup "$root$at"
        fi
    done < /proc/mounts
fi
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/run/netns" "$root/run/containerd" "$root/run/lock"

for kept in "$@"; do
    mkdir -p "$dir/disk/$kept" "$root/$kept"
    mount --bind "$dir/disk/$kept" "$root/$kept"
done
mkdir -p "$root/opt/kubernetes/bin"
mount --bind "$programs" "$root/opt/kubernetes/bin"

# The kubelet wants to set these for the whole machine: here it sets files.
for parameter in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    file=$dir/volatile/sysctl/$(echo "$parameter" | tr / _)
    cat "/proc/sys/$parameter" > "$file"
    mount --bind "$file" "$root/proc/sys/$parameter"
done

hostname "$name"
cd "$root"
mkdir -p .before
pivot_root . .before
cd /
umount -l /.before
rmdir /.before
# Mounts made by a pod or by containerd reach the pods that ask for them.
mount --make-rshared /
exec env --ignore-signal=CHLD sleep infinity
