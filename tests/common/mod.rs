//! The real binary as its users have it: started on a free port, spoken to over HTTP, stopped by signals.
#![allow(dead_code, unreachable_pub)] // each test target uses a part of it

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing in these tests takes so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The golden that tests take where any would do.
pub const MODEL: &str = "v3-tied-f32";

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn golden(name: &str) -> String {
    root().join("tests/goldens").join(name).display().to_string()
}

/// The binary, with none of the caller's own `STRAIT_*`.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strait"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STRAIT_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to the end: exit code, standard output, standard error.
pub fn strait(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// `strait serve` on a free port. Killed when dropped.
pub struct Server {
    child: Child,
    pub url: String,
    log: Arc<Mutex<String>>,
    agent: ureq::Agent,
}

impl Server {
    /// Returns when the model is loaded.
    pub fn start(args: &[&str]) -> Self {
        let server = Self::spawn(args);
        server.wait_until("loaded", || server.get("/health").0 == 200);
        server
    }

    /// Returns when the port answers.
    pub fn spawn(args: &[&str]) -> Self {
        Self::spawn_at(Path::new("."), 0, args)
    }

    /// The same in a directory and on a port.
    pub fn spawn_at(directory: &Path, port: u16, args: &[&str]) -> Self {
        let mut command = command(&["serve", "--port", &port.to_string()]);
        let mut child = command.args(args).current_dir(directory).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let urls = follow(child.stderr.take().unwrap(), log.clone());
        let url = urls.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no port: {}", log.lock().unwrap()));
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        Self { child, url, log, agent: agent.build().into() }
    }

    pub fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < end, "never {what}: {}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Status and body as text.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut response = self.agent.get(format!("{}{path}", self.url)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// The headers of the answer to an OPTIONS.
    pub fn preflight(&self, path: &str, headers: &[(&str, &str)]) -> ureq::http::HeaderMap {
        let request = self.agent.options(format!("{}{path}", self.url));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.call().unwrap().headers().clone()
    }

    /// Status and body.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = self.agent.post(format!("{}{path}", self.url)).send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// The body of a 200.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The events of a stream as they come, without `[DONE]`, which must be the last.
    pub fn stream(&self, path: &str, body: &Value) -> impl Iterator<Item = Value> + use<> {
        let response = self.agent.post(format!("{}{path}", self.url)).send_json(body).unwrap();
        assert_eq!(response.status().as_u16(), 200);
        let mut lines = BufReader::new(response.into_body().into_reader()).lines();
        std::iter::from_fn(move || {
            loop {
                let line = lines.next().expect("the stream ends with [DONE]").unwrap();
                match line.strip_prefix("data: ") {
                    Some("[DONE]") => return None,
                    Some(event) => return Some(serde_json::from_str(event).unwrap()),
                    None => assert!(line.is_empty() || line.starts_with(':'), "{line:?}"),
                }
            }
        })
    }

    /// The value of a series, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "")
    }

    /// The same over the lines whose labels hold `label`.
    pub fn metric_with(&self, name: &str, label: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let value = |line: &str| {
            let rest = line
                .strip_prefix(name)
                .filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        };
        let values: Vec<f64> = text.lines().filter_map(value).collect();
        assert!(!values.is_empty(), "no {name} in {text}");
        values.iter().sum()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Exit code, once it ends, and all that it logged.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.log());
            }
            assert!(Instant::now() < end, "does not end: {}", self.log());
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects a log, and sends the address that it names.
fn follow(stderr: std::process::ChildStderr, log: Arc<Mutex<String>>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some((_, url)) = line.split_once("listening on ") {
                let url = url.split(|c: char| c == '"' || c.is_whitespace()).next().unwrap_or_default();
                let _ = sender.send(url.to_owned());
            }
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    receiver
}

/// A copy of a golden checkpoint that a test may damage.
pub fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden(name)).unwrap().map(Result::unwrap) {
        if !file.file_name().to_string_lossy().starts_with("golden") {
            fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    copy
}

pub fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}
