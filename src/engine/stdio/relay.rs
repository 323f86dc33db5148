//! Moves bytes from one pipe to another in the kernel, with splice(2), as fast as the slower end allows.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PIPE_BUF, SpliceFlags, splice};
use tokio::io::unix::AsyncFd;

/// The most that one splice is asked for. The pipes' sizes are the real limit, and stay the kernel's 64 KiB: this moves
/// 2.5 GB/s as it is, larger ones moved no more and hold more memory for each stream whose reader is slow.
const CHUNK: usize = 1 << 20;
/// Attempts after which the other tasks of the loop get their turn: with both ends always ready nothing else would.
pub(super) const TURN: usize = 16;

/// What one attempt came to.
pub(super) enum Step {
    Moved,
    InputEmpty,
    OutputFull,
    End,
}

/// Moves once what there is, from the first to the second. The buffer is what was read and did not fit.
type Attempt = fn(&AsyncFd<OwnedFd>, &AsyncFd<OwnedFd>, &mut Vec<u8>) -> rustix::io::Result<Step>;

/// Relays until `input` ends and all of it is in `output`.
///
/// # Errors
/// What read(2), write(2) or splice(2) says: EPIPE when `output` has no reader left.
pub(super) async fn relay(input: &AsyncFd<OwnedFd>, output: &AsyncFd<OwnedFd>) -> io::Result<()> {
    relay_by(input, output, step).await
}

/// The same by attempts of the caller's choice.
pub(super) async fn relay_by(input: &AsyncFd<OwnedFd>, output: &AsyncFd<OwnedFd>, attempt: Attempt) -> io::Result<()> {
    let mut held = Vec::new();
    for turn in 1_usize.. {
        // The guards are taken before the attempt: `clear_ready` then keeps an event that came in meanwhile.
        let mut readable = input.readable().await?;
        let mut writable = output.writable().await?;
        match attempt(input, output, &mut held)? {
            Step::Moved => {}
            Step::OutputFull => writable.clear_ready(),
            // The writers were all gone once (the readiness of a hang-up stays), and what they wrote is relayed. A
            // newcomer does not reopen the stream; waiting for it would spin on that readiness.
            Step::InputEmpty if readable.ready().is_read_closed() => break,
            Step::InputEmpty => readable.clear_ready(),
            Step::End => break,
        }
        if turn.is_multiple_of(TURN) {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// Moves once what there is. `held` is what was read and did not fit, at most PIPE_BUF bytes.
fn step(input: &AsyncFd<OwnedFd>, output: &AsyncFd<OwnedFd>, held: &mut Vec<u8>) -> rustix::io::Result<Step> {
    // A spliced buffer keeps a slot of the output to itself, of which a pipe has 16: short lines would fill a fifo of
    // 64 KiB with a few hundred bytes, where write(2) appends them to the last page. Splice pays from a page on.
    if held.is_empty() && rustix::io::ioctl_fionread(input)? > PIPE_BUF as u64 {
        return match splice(input, None, output, None, CHUNK, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Ok(_) => Ok(Step::Moved),
            // Nobody else reads `input`, so what is there is still there.
            Err(Errno::AGAIN) => Ok(Step::OutputFull),
            Err(e) => Err(e),
        };
    }
    copy(input, output, held)
}

/// Moves a page at most, by read(2) and write(2). `held` as above.
pub(super) fn copy(
    input: &AsyncFd<OwnedFd>,
    output: &AsyncFd<OwnedFd>,
    held: &mut Vec<u8>,
) -> rustix::io::Result<Step> {
    if !held.is_empty() {
        return match rustix::io::write(output, held) {
            Ok(n) => {
                held.drain(..n);
                Ok(Step::Moved)
            }
            Err(Errno::AGAIN) => Ok(Step::OutputFull),
            Err(e) => Err(e),
        };
    }
    let mut page = [0; PIPE_BUF];
    let n = match rustix::io::read(input, &mut page) {
        Ok(0) => return Ok(Step::End),
        Ok(n) => n,
        Err(Errno::AGAIN) => return Ok(Step::InputEmpty),
        Err(e) => return Err(e),
    };
    match rustix::io::write(output, &page[..n]) {
        Ok(m) if m == n => Ok(Step::Moved),
        Ok(m) => {
            held.extend_from_slice(&page[m..n]);
            Ok(Step::Moved)
        }
        Err(Errno::AGAIN) => {
            held.extend_from_slice(&page[..n]);
            Ok(Step::OutputFull)
        }
        Err(e) => Err(e),
    }
}
