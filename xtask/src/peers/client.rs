//! A client of our server that does as little as it can: it shares the cores with what is measured.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// `exotherm serve` on a port of its own; it ends with this.
pub struct Server {
    child: Child,
    address: String,
}

/// What a stream took, from before its request was written.
pub struct Streamed {
    pub first_token: Duration,
    pub tokens: usize,
}

impl Server {
    pub fn start(binary: &Path, options: &[&str]) -> Result<Server> {
        let mut command = Command::new(binary);
        command.arg("serve").args(options).args(["--port", "0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("no pipe from the server")?;
        let mut server = Server { child, address: String::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening at http://");
        server.address = address.with_context(|| format!("no server: {line:?}"))?.to_string();
        // The address is told before the model is there.
        let begin = Instant::now();
        while server.get("/ready").is_err() {
            ensure!(begin.elapsed() < Duration::from_secs(120), "the server is not ready after 2 minutes");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn get(&self, path: &str) -> Result<()> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        ensure!(line.contains(" 200 "), "{path}: {line}");
        Ok(())
    }

    /// A completion of these tokens, in a stream that does not end early.
    pub fn complete(&self, prompt: &[u32], tokens: usize, ready: &Barrier) -> Result<Streamed> {
        let body = json!({
            "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true, "ignore_eos": true,
            "stream_options": { "include_usage": true },
        })
        .to_string();
        let stream = TcpStream::connect(&self.address).context("the server is gone")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(300)))?;
        ready.wait();
        let begin = Instant::now();
        write!(
            &stream,
            "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let streamed = read(BufReader::new(stream), begin)?;
        ensure!(streamed.tokens == tokens, "a stream ended after {} of {tokens} tokens", streamed.tokens);
        Ok(streamed)
    }

    /// Nanoseconds that every thread but the engine's own has run for; `None` where the system does not tell.
    pub fn serving_nanos(&self) -> Option<u64> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()? {
            let task = task.ok()?.path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            if name.starts_with("engine") || name.starts_with("cpu lane") {
                continue;
            }
            let times = std::fs::read_to_string(task.join("schedstat")).ok()?;
            nanos += times.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(nanos)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a reply in chunks to the end of its events.
fn read(mut from: impl BufRead, begin: Instant) -> Result<Streamed> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let ok = line.contains(" 200 ");
    let status = line.trim().to_string();
    while line != "\r\n" {
        line.clear();
        ensure!(from.read_line(&mut line)? > 0, "the server hung up: {status}");
    }
    if !ok {
        let mut body = vec![0; 500];
        let n = from.read(&mut body)?;
        bail!("{status}: {}", String::from_utf8_lossy(&body[..n]));
    }
    let (mut first_token, mut events) = (None, Vec::new());
    loop {
        line.clear();
        from.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).with_context(|| format!("no chunk: {line:?}"))?;
        ensure!(size > 0, "the stream ended without its last event");
        events.clear();
        events.resize(size + 2, 0);
        from.read_exact(&mut events)?;
        first_token.get_or_insert_with(|| begin.elapsed());
        let Some(events) = events.strip_suffix(b"data: [DONE]\n\n\r\n") else { continue };
        let events = std::str::from_utf8(events)?;
        let usage = events.rsplit("data: ").next().context("no event with the usage")?;
        let usage: Value = serde_json::from_str(usage)?;
        let tokens = usage["usage"]["completion_tokens"].as_u64().context("no usage")? as usize;
        return Ok(Streamed { first_token: first_token.unwrap_or_default(), tokens });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunked(events: &[&str]) -> Vec<u8> {
        let chunks: String = events.iter().map(|e| format!("{:x}\r\n{e}\r\n", e.len())).collect();
        format!("HTTP/1.1 200 OK\r\nx: y\r\n\r\n{chunks}0\r\n\r\n").into_bytes()
    }

    #[test]
    fn a_stream_is_read_to_its_usage_and_errors_are_told() {
        let usage = r#"{"usage":{"completion_tokens":7}}"#;
        let reply = chunked(&["data: {}\n\n", &format!("data: {{}}\n\ndata: {usage}\n\ndata: [DONE]\n\n")]);
        assert_eq!(read(&reply[..], Instant::now()).expect("a stream").tokens, 7);
        let cut = chunked(&["data: {}\n\n"]);
        assert!(read(&cut[..], Instant::now()).is_err());
        let refused = b"HTTP/1.1 429 Too Many\r\n\r\n{\"error\":1}";
        let told = read(&refused[..], Instant::now()).err().expect("an error").to_string();
        assert!(told.contains("429") && told.contains("error"), "{told}");
    }
}
