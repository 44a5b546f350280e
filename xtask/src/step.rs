//! [`Steps`]: runs programs in sequence, prints title, command, time and memory of each, and stops cleanly on Ctrl-C.

use std::{
    env, fmt,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Time that a program gets to end by itself after Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(10);

/// The user stopped the work.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped")
    }
}

impl std::error::Error for Interrupted {}

/// The steps so far.
pub struct Steps {
    interrupted: Arc<AtomicBool>,
    /// In order.
    pub taken: Vec<Taken>,
}

/// Time and memory of a step.
pub struct Taken {
    pub title: String,
    pub time: Duration,
    /// Peak memory of the program, in bytes, if the system reports it.
    pub peak_memory: Option<u64>,
}

impl Steps {
    /// From here on, Ctrl-C ends the running program and then this one.
    pub fn new() -> Result<Steps> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst)).context("cannot watch for Ctrl-C")?;
        Ok(Steps { interrupted, taken: Vec::new() })
    }

    /// Runs a program that inherits stdout and stderr.
    pub fn run(&mut self, title: &str, command: &mut Command) -> Result<()> {
        self.take(title, command).map(|_| ())
    }

    /// Runs a program and appends its failure to `failed`. The error is Ctrl-C.
    pub fn check(&mut self, failed: &mut Vec<String>, title: &str, command: &mut Command) -> Result<()> {
        match self.run(title, command) {
            Err(error) if error.is::<Interrupted>() => Err(error),
            Err(error) => {
                failed.push(format!("{title}: {error:#}"));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Runs a program and returns its stdout; stderr is inherited.
    pub fn capture(&mut self, title: &str, command: &mut Command) -> Result<String> {
        self.take(title, command.stdout(Stdio::piped()))
    }

    fn take(&mut self, title: &str, command: &mut Command) -> Result<String> {
        eprintln!("\n== {title}\n   $ {}", shown(command));
        let start = Instant::now();
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot run `{program}`"))?;
        let stdout = child.stdout.take();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stdout.map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut text)).map(|_| text)
        });
        let (status, peak_memory) = wait(&self.interrupted, &mut child)?;
        let text = reader.join().expect("reading does not panic").with_context(|| format!("output of `{program}`"))?;
        let taken = Taken { title: title.to_string(), time: start.elapsed(), peak_memory };
        eprintln!("   {taken}");
        self.taken.push(taken);
        if !status.success() {
            bail!("`{}` failed: {status}", shown(command));
        }
        Ok(text)
    }

    /// Starts programs in sequence, in parallel with the following steps. Their output goes to a file until [`Steps::join`].
    pub fn beside(&self, log: &Path, programs: Vec<(String, Command)>) -> Result<Beside> {
        let file = File::create(log).with_context(|| format!("cannot create `{}`", log.display()))?;
        let interrupted = Arc::clone(&self.interrupted);
        let thread = thread::spawn(move || {
            let mut all = Vec::new();
            for (title, mut command) in programs {
                let start = Instant::now();
                let program = command.get_program().to_string_lossy().into_owned();
                command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file.try_clone()?);
                let mut child = command.spawn().with_context(|| format!("cannot run `{program}`"))?;
                let (status, peak_memory) = wait(&interrupted, &mut child)?;
                all.push((shown(&command), status, Taken { title, time: start.elapsed(), peak_memory }));
                if !status.success() {
                    break;
                }
            }
            Ok(all)
        });
        Ok(Beside { thread, log: log.to_path_buf() })
    }

    /// Waits for parallel programs and prints their output.
    pub fn join(&mut self, beside: Beside) -> Result<()> {
        let all = beside.thread.join().expect("running programs does not panic")?;
        for (command, _, taken) in &all {
            eprintln!("\n== {}, in parallel\n   $ {command}\n   {taken}", taken.title);
        }
        let output =
            fs::read_to_string(&beside.log).with_context(|| format!("cannot read `{}`", beside.log.display()))?;
        eprint!("{output}");
        for (command, status, taken) in all {
            self.taken.push(taken);
            if !status.success() {
                bail!("`{command}` failed: {status}");
            }
        }
        Ok(())
    }
}

/// Programs that run in parallel with the steps.
pub struct Beside {
    thread: JoinHandle<Result<Vec<(String, ExitStatus, Taken)>>>,
    log: PathBuf,
}

/// The value, or `None` after a warning that `consequence` follows. Ctrl-C stays an error, and so does a failure if the
/// environment variable `required` is set.
pub fn optional<T>(result: Result<T>, consequence: &str, required: Option<&str>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(error) if required.is_some_and(|name| env::var_os(name).is_some()) => Err(error),
        Err(error) => {
            eprintln!("warning: {error:#}; {consequence}");
            Ok(None)
        }
    }
}

/// Waits for a program; after Ctrl-C at most [`PATIENCE`].
fn wait(interrupted: &AtomicBool, child: &mut Child) -> Result<(ExitStatus, Option<u64>)> {
    let mut peak_memory = None;
    let mut deadline = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak_memory = peak_memory.max(memory_high_water(child.id()));
        if interrupted.load(Ordering::SeqCst) && Instant::now() > *deadline.get_or_insert(Instant::now() + PATIENCE) {
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(20));
    };
    match interrupted.load(Ordering::SeqCst) {
        true => Err(Interrupted.into()),
        false => Ok((status, peak_memory)),
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", seconds(self.time))?;
        if let Some(bytes) = self.peak_memory {
            write!(f, ", peak memory {}", size(bytes))?;
        }
        Ok(())
    }
}

/// `12.3 s` or `3 min 20 s`.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..100 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

/// `1.23 GiB` or `45.6 MiB`.
pub fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1000.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.2} GiB", mebibytes / 1024.0) }
}

/// A command as typed in the root of the repository.
pub fn shown(command: &Command) -> String {
    let folder = command.get_current_dir().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
    let environment = command
        .get_envs()
        .filter_map(|(key, value)| Some(format!("{}={}", key.to_string_lossy(), quoted(&value?.to_string_lossy()))));
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quoted(word.to_string_lossy().trim_start_matches(folder.as_str())));
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain =
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./=:,@+".contains(&byte));
    if is_plain { word.to_string() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// `VmHWM` of a process; Linux only.
fn memory_high_water(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("/x/target/a");
        command.current_dir("/x").args(["-p", "What is it?", "it's", ""]).env("REQUIRE_GPU", "1");
        assert_eq!(shown(&command), "REQUIRE_GPU=1 target/a -p 'What is it?' 'it'\\''s' ''");
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(size(45 << 20), "45.0 MiB");
        assert_eq!(size(3 << 29), "1.50 GiB");
    }
}
