//! The lines on their way to stderr. Whoever reads there may stop, and a write to a full pipe then waits for as long as that
//! lasts: a process that logged by itself would answer nobody meanwhile, nor end. So one thread writes, and what it cannot
//! keep up with is lost and counted. (tracing-appender does the like, with a bound of lines; one at trace level can have
//! half a megabyte.)

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::metrics::LOG_LINES_LOST;

/// Bytes that wait to be written: what a process logs in an hour of an outage.
const QUEUED_MAX: usize = 1 << 20;

/// Lines that wait to be written. Clones share them.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Something waits, or was lost.
    filled: Condvar,
    /// Nothing waits any more.
    emptied: Condvar,
    queued_max: usize,
}

#[derive(Default)]
struct Queue {
    text: Vec<u8>,
    lost: u64,
    is_writing: bool,
    /// The last words are said.
    is_closed: bool,
}

impl Lines {
    /// Lines that a thread writes to `out` for the rest of the process. It may wait there as long as it likes.
    ///
    /// # Errors
    /// The operating system refuses the thread.
    pub(super) fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        Self::bounded(out, QUEUED_MAX)
    }

    fn bounded(mut out: impl Write + Send + 'static, queued_max: usize) -> io::Result<Self> {
        let lines = Self(Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            queued_max,
        }));
        let written = lines.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || written.write_on(&mut out))?;
        Ok(lines)
    }

    /// Adds one line, or loses it. Never waits.
    pub(super) fn add(&self, line: &[u8]) {
        self.add_to(&mut self.queue(), line);
    }

    /// Adds the last line: what threads say that do not know yet that the process ends is not to come after it.
    pub(super) fn close_with(&self, line: &[u8]) {
        let mut queue = self.queue();
        self.add_to(&mut queue, line);
        queue.is_closed = true;
    }

    fn add_to(&self, queue: &mut Queue, line: &[u8]) {
        if queue.is_closed {
            return;
        }
        if queue.text.len() + line.len() > self.0.queued_max {
            queue.lost += 1;
            LOG_LINES_LOST.inc();
        } else {
            queue.text.extend_from_slice(line);
        }
        self.0.filled.notify_one();
    }

    /// Waits until everything is written, but not for longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let waits = |queue: &mut Queue| queue.is_writing || !queue.text.is_empty();
        // That it is too late changes nothing: what is left is left.
        let _ = self
            .0
            .emptied
            .wait_timeout_while(self.queue(), patience, waits);
    }

    fn write_on(&self, out: &mut impl Write) -> ! {
        let mut text = Vec::new();
        loop {
            let mut queue = self.queue();
            queue.is_writing = false;
            if queue.text.is_empty() {
                self.0.emptied.notify_all();
            }
            let idle = |queue: &mut Queue| queue.text.is_empty() && queue.lost == 0;
            queue = self
                .0
                .filled
                .wait_while(queue, idle)
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut queue.text, &mut text);
            let lost = std::mem::take(&mut queue.lost);
            queue.is_writing = true;
            drop(queue);
            // Where nobody can be told, it is no use to tell that.
            let _ = out.write_all(&text).and_then(|()| out.flush());
            text.clear();
            if lost > 0 {
                tracing::warn!(
                    lines = lost,
                    "lines of the log are lost: stderr is read too slowly, or not at all"
                );
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line comes whole, in one write.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread::spawn;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn lines_come_in_order_and_the_last_one_is_there_when_it_was_flushed() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let reading = spawn(move || {
            let mut read = String::new();
            let mut byte = [0];
            while !read.ends_with("last\n") {
                reader.read_exact(&mut byte).expect("a byte");
                read.push(char::from(byte[0]));
            }
            read
        });
        let lines = Lines::to(writer).expect("a thread");
        let expected: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        for line in expected.lines() {
            lines.add(format!("{line}\n").as_bytes());
        }
        lines.close_with(b"last\n");
        lines.add(b"too late\n");
        lines.flush(PATIENCE);
        assert!(lines.queue().text.is_empty());
        assert_eq!(reading.join().expect("read"), expected + "last\n");
    }

    #[test]
    fn who_does_not_read_holds_up_nobody_and_what_is_lost_is_counted() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let lines = Lines::bounded(writer, 1000).expect("a thread");
        let before = LOG_LINES_LOST.get();
        // A pipe holds 64 KiB.
        let line = [b'x'; 500];
        for _ in 0..1000 {
            lines.add(&line);
        }
        lines.flush(Duration::from_millis(1));
        let lost = LOG_LINES_LOST.get() - before;
        assert!((700..1000).contains(&lost), "{lost}");
        assert!(lines.queue().text.len() <= 1000);
        // What was taken comes once somebody reads, and nothing else.
        let kept = usize::try_from(1000 - lost).expect("a small number") * line.len();
        let mut read = vec![0; kept];
        reader.read_exact(&mut read).expect("all of it");
        lines.flush(PATIENCE);
        lines.add(b"again\n");
        let mut again = [0; 6];
        reader.read_exact(&mut again).expect("the next line");
        assert_eq!(&again, b"again\n");
    }
}
