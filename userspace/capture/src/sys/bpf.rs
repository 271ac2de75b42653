//! `bpf(2)`: typed maps, pins and links. aya loads the programs; what happens per connection or
//! per take-over needs calls that it does not offer (take an entry atomically, replace the program
//! of a link), and no `&mut` on maps that all threads share.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Where a program is attached (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    SockCreate = 2,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Getpeername4 = 29,
    Getpeername6 = 30,
    Getsockname4 = 31,
    Getsockname6 = 32,
    SkLookup = 36,
}

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// One `bpf` call.
///
/// # Safety
/// `attr` must be the layout that `cmd` reads, and every address in it valid for what `cmd` does.
unsafe fn bpf<T>(cmd: libc::c_int, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads `size` bytes of `attr` and takes what is beyond as zero; the rest
    // is the caller's promise.
    let ret = unsafe {
        libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), std::mem::size_of::<T>())
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are never negative while borrowed.
    fd.as_raw_fd().unsigned_abs()
}

/// A map with keys `K` and values `V`, shared by all threads.
#[derive(Debug)]
pub(crate) struct BpfMap<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

/// What `BPF_OBJ_GET_INFO_BY_FD` says of a map (the beginning of `struct bpf_map_info`).
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr =
        InfoAttr { bpf_fd: raw(fd), info_len: size_of::<T>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: the kernel writes at most the length given to `info`, which is live; the types that
    // this is called with are integers alone.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

fn expect_size(what: &str, is: u32, wanted: usize) -> io::Result<()> {
    if usize::try_from(is).is_ok_and(|is| is == wanted) {
        return Ok(());
    }
    Err(io::Error::other(format!("the map's {what} has {is} bytes, not {wanted}")))
}

/// All keys of the map behind `fd`, at most `limit`, whatever its values are.
pub(crate) fn keys_of<K: Pod>(fd: OwnedFd, limit: usize) -> io::Result<Vec<K>> {
    expect_size("key", info::<MapInfo>(fd.as_fd())?.key_size, size_of::<K>())?;
    BpfMap::<K, u8> { fd, types: PhantomData }.keys(limit)
}

impl<K: Pod, V: Pod> BpfMap<K, V> {
    /// The map behind `fd`; its keys and values have to have the sizes of `K` and `V`.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info: MapInfo = info(fd.as_fd())?;
        expect_size("key", info.key_size, size_of::<K>())?;
        expect_size("value", info.value_size, size_of::<V>())?;
        Ok(Self { fd, types: PhantomData })
    }

    fn elem(&self, key: *const K, value: *mut V, flags: u64) -> ElemAttr {
        ElemAttr {
            map_fd: raw(self.fd.as_fd()),
            pad: 0,
            key: key as u64,
            value: value as u64,
            flags,
        }
    }

    fn read(&self, cmd: libc::c_int, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let mut attr = self.elem(key, value.as_mut_ptr(), 0);
        // SAFETY: key and value have the map's sizes, which `new` has checked.
        match unsafe { bpf(cmd, &mut attr) } {
            // SAFETY: on success the kernel has written the whole value, and any bytes are a `V`.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_ELEM, key)
    }

    /// The value of `key`, removed in the same step: of two takers only one gets it.
    pub(crate) fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key)
    }

    /// Writes the value of `key`.
    pub(crate) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.elem(key, std::ptr::from_ref(value).cast_mut(), 0);
        // SAFETY: key and value have the map's sizes; the kernel only reads the value.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes `key`; true if it was there.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attr = self.elem(key, std::ptr::null_mut(), 0);
        // SAFETY: the key has the map's size.
        match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All keys at this moment, at most `limit`. Concurrent changes may hide or repeat some.
    pub(crate) fn keys(&self, limit: usize) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        while keys.len() < limit {
            match self.next_key(keys.last())? {
                Some(key) => keys.push(key),
                None => break,
            }
        }
        Ok(keys)
    }

    fn next_key(&self, after: Option<&K>) -> io::Result<Option<K>> {
        let mut next = MaybeUninit::<K>::uninit();
        let key = after.map_or(std::ptr::null(), std::ptr::from_ref);
        let mut attr = self.elem(key, next.as_mut_ptr().cast(), 0);
        // SAFETY: for this command the value address receives a key, and `next` has its size.
        match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            // SAFETY: on success the kernel has written the whole key, and any bytes are a `K`.
            Ok(_) => Ok(Some(unsafe { next.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<V: Pod> BpfMap<u32, V> {
    /// All CPUs' values at `index` of a per-CPU array whose values are eight bytes.
    pub(crate) fn per_cpu(&self, index: u32, cpus: usize) -> io::Result<Vec<u64>> {
        assert_eq!(size_of::<V>(), size_of::<u64>(), "per-CPU values are read as eight bytes");
        let mut values = vec![0_u64; cpus];
        let mut attr = self.elem(&index, values.as_mut_ptr().cast(), 0);
        // SAFETY: the kernel writes eight bytes for each possible CPU, which is `cpus`.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) }?;
        Ok(values)
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
pub(crate) fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path is a valid C string for the duration of the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    own(fd)
}

/// Pins `object` at `path`.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(object), file_flags: 0 };
    // SAFETY: the path is a valid C string for the duration of the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches `program` to `target` (a cgroup or a network namespace).
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target_fd: raw(target),
        attach_type: attach_type as u32,
        flags: 0,
    };
    // SAFETY: the attribute holds no address.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    own(fd)
}

/// Replaces the program of `link`, without a moment in which there is none.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// What `BPF_OBJ_GET_INFO_BY_FD` says of a cgroup's link (the beginning of `struct bpf_link_info`).
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
}

/// The number of the cgroup that `link` is attached to: the inode of its directory. Zero if the
/// cgroup is gone.
pub(crate) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let info: CgroupLinkInfo = info(link)?;
    Ok(info.cgroup_id)
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// Takes the program of `link` away from its target now; dropping the last reference does it too,
/// but some time later.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: raw(link) };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

fn own(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
