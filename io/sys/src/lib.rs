//! Facts about processes and sockets, from the kernel. The only crate where `unsafe` would be allowed;
//! so far it needs none.

mod files;
mod listen;
mod process;

pub use files::FileWatch;
pub use listen::{ListenError, bind_tcp, bind_unix, tune};
pub use process::{
    PeerProcess, ProcessError, is_descendant, own_pid, own_uid, parent_of, raise_open_files,
    resident_bytes, start_time_of,
};
