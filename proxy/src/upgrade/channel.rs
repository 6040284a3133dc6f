//! Messages with descriptors between two processes of one machine (`SOCK_SEQPACKET`, `SCM_RIGHTS`).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    cmsg_space,
    fs::{Mode, fchmod},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, bind, connect, listen, recvmsg, sendmsg, socket_with,
    },
    process::geteuid,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

/// Most descriptors one message carries; the kernel allows 253.
pub(super) const MOST_DESCRIPTORS: usize = 64;
/// Most bytes of a message.
const MOST_BYTES: usize = 64 * 1024;
/// Upgrades that wait while one is under way; they are told so one after the other.
const BACKLOG: i32 = 4;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

/// Where others connect.
#[derive(Debug)]
pub(crate) struct Door(UnixListener);

impl Door {
    /// Listens at `path`, in the place of whatever socket was there.
    ///
    /// # Errors
    /// When there is something else, or the folder cannot be written.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt as _;
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "this is no socket"));
            }
            _ => {}
        }
        let socket = socket()?;
        // Before the file is there, so that at no time others may connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        // Made beside it and moved into its place, so that there is one at any time.
        let beside = beside(path);
        let _ = std::fs::remove_file(&beside);
        bind(&socket, &SocketAddrUnix::new(&beside)?)?;
        listen(&socket, BACKLOG)?;
        std::fs::rename(&beside, path)?;
        Ok(Self(UnixListener::from_std(socket.into())?))
    }

    /// The next who connects and is of our user, or root.
    pub(super) async fn next(&self) -> io::Result<Channel> {
        loop {
            let channel = Channel(self.0.accept().await?.0);
            match channel.check_peer() {
                Ok(()) => return Ok(channel),
                Err(error) => tracing::warn!(%error, "somebody else knocked at the upgrade socket"),
            }
        }
    }
}

impl Channel {
    /// Connects to whoever listens at `path`; `None` when nobody does.
    pub(super) fn connect(path: &Path) -> io::Result<Option<Self>> {
        let socket = socket()?;
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let channel = Self(UnixStream::from_std(socket.into())?);
        channel.check_peer()?;
        Ok(Some(channel))
    }

    fn check_peer(&self) -> io::Result<()> {
        let peer = self.0.peer_cred()?.uid();
        if peer == geteuid().as_raw() || peer == 0 {
            return Ok(());
        }
        let told = format!("it is of another user (uid {peer})");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, told))
    }

    /// The process at the other end; `None` when this one cannot see it.
    pub(super) fn peer(&self) -> Option<i32> {
        // Not by rustix, whose process ids are never 0.
        seen(self.0.peer_cred().ok()?.pid())
    }

    /// Sends one message, with at most [`MOST_DESCRIPTORS`].
    pub(super) async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(io::Error::other("too many descriptors for one message"));
            }
            sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// The next message and what came with it.
    ///
    /// # Errors
    /// When the other end is gone, or says what is no such message.
    pub(super) async fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut bytes = vec![0; MOST_BYTES];
        let mut descriptors = Vec::new();
        let receive = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let came = recvmsg(&self.0, &mut slices, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(those) = message {
                    descriptors.extend(those);
                }
            }
            Ok((came.bytes, came.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)))
        };
        let (length, cut) = self.0.async_io(Interest::READABLE, receive).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if cut {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
        }
        Ok((serde_json::from_slice(&bytes[..length])?, descriptors))
    }
}

/// The kernel says 0 of a process in a PID namespace that is not below ours: another container.
pub(super) fn seen(pid: Option<i32>) -> Option<i32> {
    pid.filter(|pid| *pid > 0)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}
