//! Start: a created init is let go; a recorded exec is born. Both end when the child is its program.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;

use crate::error::{Context, Error, Kind, Result};
use crate::init::sync::Heard;

use super::Engine;
use super::container::{Container, Process};
use super::create::SET_UP_BOUND;
use super::events::Event;
use super::fifo;
use super::lifecycle::{self, State};
use super::trace::{self, Step};

impl Engine {
    /// Starts the container's init (`exec` empty) or an exec; returns its pid.
    ///
    /// The start event is queued before any exit of the process can be told: the reaper leaves an exit alone while its
    /// process is `Starting`, and it is taken up here when the event is out.
    ///
    /// # Errors
    /// `FailedPrecondition` for what is not to be started now; what the child says.
    pub async fn start(self: Rc<Self>, id: String, exec: String) -> Result<u32> {
        let container = self.container(&id)?;
        let process = container.process(&exec)?;
        container.refuse_if_ending().map_err(|e| e.context(process.to_string()))?;
        container.refuse_in_checkpoint().map_err(|e| e.context(process.to_string()))?;
        if !process.even_if_paused.get() {
            container.refuse_if_paused().map_err(|e| e.context(process.to_string()))?;
        }
        process.state().after(lifecycle::Event::Start).map_err(|e| e.context(process.to_string()))?;
        // One that does not wait to be let go is not to be ended for it.
        let held = container.fifo.as_deref().filter(|_| exec.is_empty() && process.pid() != 0).map(fifo::open);
        let held = held.transpose().map_err(|e| e.context(process.to_string()))?;
        process.advance(lifecycle::Event::Start)?;
        let trace = process.trace.take().unwrap_or_else(|| {
            let trace = self.traces.begin(trace::Kind::Start, &id, &exec, Step::Releasing);
            trace.child(process.stamps.borrow().clone());
            trace
        });
        process.trace.replace(Some(trace.clone()));
        let kills = container.oom.get().map_or(0, |oom| oom.mark());
        let starting = async {
            match exec.as_str() {
                "" if container.init.pid() == 0 => self.restore(&container).await,
                "" => self.release(&container, held).await,
                _ => self.start_exec(&container, &process).await,
            }
        };
        // Whatever happens, it does not stay `Starting`: nobody would ever hear of its end.
        let started = AssertUnwindSafe(starting).catch_unwind().await.unwrap_or_else(|_| Err(Error::panicked()));
        process.sync.borrow_mut().take();
        process.stamps.take();
        match started {
            Ok(()) => {
                trace.at(Step::Announcing);
                process.advance(lifecycle::Event::Executed)?;
                self.emit_start(&process);
                let pid = process.pid();
                self.exited(&process);
                if exec.is_empty() {
                    let hooks = self.run_poststart_hooks(&container).await;
                    process.trace.take();
                    hooks.context(|| process.to_string())?;
                }
                process.trace.take();
                trace.done();
                Ok(pid)
            }
            Err(error) => {
                trace.at(Step::GivingUp);
                process.trace.take();
                self.tell_oom(&container, false);
                let error = match container.oom.get() {
                    Some(oom) => oom.explain(&id, kills, error),
                    None => error,
                };
                if exec.is_empty() {
                    self.tell_missed_oom(&container);
                }
                self.start_failed(&container, &process).await?;
                Err(error.context(process.to_string()))
            }
        }
    }

    async fn release(self: &Rc<Self>, container: &Container, held: Option<fifo::Held<'_>>) -> Result<()> {
        let init = &container.init;
        let bound = container.hooks.borrow().as_ref().map_or(Some(SET_UP_BOUND), |hooks| hooks.start_bound());
        if let Some(held) = held {
            init.at(Step::Waiting);
            let released = fifo::release(held, bound).await;
            return released.context(|| "OCI runtime start failed: unable to start container process");
        }
        let sync = init.sync.borrow().clone();
        let sync = sync.ok_or_else(|| Error::new(Kind::Internal, "no child to talk to"))?;
        sync.get_ref().release()?;
        self.executed(container, init, bound)
            .await
            .context(|| "OCI runtime start failed: unable to start container process")
    }

    /// Waits until the child is its program, at most for `bound` between two words of it.
    pub(super) async fn executed(
        self: &Rc<Self>,
        container: &Container,
        process: &Rc<Process>,
        bound: Option<Duration>,
    ) -> Result<()> {
        let mut handed_over = false;
        process.at(Step::Waiting);
        loop {
            match self.heard(process, bound).await? {
                // The end of the socket alone: its maker was killed on its way.
                Heard::Executed if process.pid() == 0 => {
                    let text = "it has died before its birth; is the container's memory limit too low?";
                    return Err(Error::new(Kind::Internal, text));
                }
                Heard::Executed => return Ok(()),
                // Once: a process that has been taken over in its container may say so for ever.
                Heard::Listener(mailbox) if !handed_over => {
                    process.at(Step::HandingOver);
                    self.hand_over(container, process, mailbox).await?;
                    process.at(Step::Waiting);
                    handed_over = true;
                }
                other => {
                    let text = format!("the child said {other:?} instead of executing");
                    return Err(Error::new(Kind::Internal, text));
                }
            }
        }
    }

    /// A child that failed on the way ends by itself. An init's exit is told as any other; of an exec, of which nobody
    /// has seen a start, there is nothing to tell but to those who wait for it.
    async fn start_failed(self: &Rc<Self>, container: &Container, process: &Rc<Process>) -> Result<()> {
        process.advance(lifecycle::Event::StartFailed)?;
        // Mostly it is ending by itself; one that did not answer in time must not become its program later.
        process.give_up_birth();
        if process.pid() != 0 {
            let _ = process.signal(libc::SIGKILL as u32);
        } else if let Some(stdio) = &*process.stdio.borrow() {
            stdio.process_ended();
        }
        if process.exec.is_empty() {
            self.exited(process);
            return Ok(());
        }
        if process.state() == State::Created {
            process.advance(lifecycle::Event::Exited)?;
        }
        let exit = super::events::Exit { status: 255, at: std::time::SystemTime::now() };
        process.set_exit(process.reaped.get().unwrap_or(exit));
        container.exec_ended.notify_waiters();
        Ok(())
    }

    fn emit_start(&self, process: &Process) {
        let pid = process.pid();
        self.emit(match process.exec.as_str() {
            "" => Event::Start { id: process.container.clone(), pid },
            exec => Event::ExecStarted { container: process.container.clone(), exec: exec.to_owned(), pid },
        });
    }
}
