//! Messages with descriptors between the two processes. They block, and only for a while.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with,
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

/// Where the other process connects.
#[derive(Debug)]
pub(super) struct Door(OwnedFd);

/// Most descriptors of one message.
const MOST_DESCRIPTORS: usize = 8;
/// Most bytes of a message. A host may have many ports that listen.
const MOST_BYTES: usize = 128 * 1024;

impl Door {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 1)?;
        Ok(Self(socket))
    }

    pub(super) fn accept(&self, patience: Duration) -> io::Result<Channel> {
        wait_for(&self.0, patience)?;
        Ok(Channel(accept_with(&self.0, SocketFlags::CLOEXEC)?))
    }
}

impl Channel {
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    pub(super) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message, within so long; without a bound until the other end is gone.
    pub(super) fn receive<T: DeserializeOwned>(
        &self,
        patience: impl Into<Option<Duration>>,
    ) -> io::Result<(T, Vec<OwnedFd>)> {
        if let Some(patience) = patience.into() {
            wait_for(&self.0, patience)?;
        }
        let mut bytes = vec![0; MOST_BYTES];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let came = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if came.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if came.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(those) = message {
                descriptors.extend(those);
            }
        }
        Ok((serde_json::from_slice(&bytes[..came.bytes])?, descriptors))
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn wait_for(socket: &impl AsFd, patience: Duration) -> io::Result<()> {
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut waiting = [PollFd::new(socket, PollFlags::IN)];
    match poll(&mut waiting, Some(&patience))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}
