//! The interactive chat of `exotherm run`.

use std::cell::Cell;
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use exotherm_engine::Sampling;
use exotherm_tokenizer::Message;
use exotherm_weights::store::Store;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Editor, Helper};
use serde_json::json;

use crate::Context;
use crate::commands::run::{Args, Session};
use crate::generate::{Reason, Watcher, answer};
use crate::output::{Out, note};

const HELP: &str = "\
/help                 this list
/clear                forget the conversation
/system [TEXT]        tell the model what to be, from now on; without TEXT: show it; with -: forget it
/set [NAME VALUE]     change a setting: temperature, top-k, top-p, min-p, seed, max-tokens,
                      repeat-penalty, presence-penalty, frequency-penalty; without NAME: show them
/save FILE            write the conversation to a new JSON file
/exit                 leave (also /quit, Ctrl-D, or Ctrl-C at an empty prompt)

A line that ends in \\ goes on in the next, and so does everything between two \"\"\".
Ctrl-C ends an answer and clears what is typed.";

const COMMANDS: [&str; 7] = ["/help", "/clear", "/system", "/set", "/save", "/exit", "/quit"];
const QUOTES: &str = "\"\"\"";

/// What of the settings of `run` can be changed on the way.
struct Chat<'a> {
    args: &'a Args,
    cx: &'a Context,
    session: &'a mut Session,
    sampling: Sampling,
    max_tokens: Option<usize>,
    system: Option<String>,
    messages: Vec<Message>,
}

pub fn run(args: &Args, cx: &Context, session: &mut Session) -> Result<()> {
    let mut editor = editor()?;
    let history = history_path();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    note(format_args!(
        "{}, {} tokens of context. /help lists the commands, /exit leaves.",
        session.model, session.ctx
    ));
    let mut chat = Chat {
        args,
        cx,
        session,
        sampling: args.sampling(),
        max_tokens: args.max_tokens,
        system: args.system.clone(),
        messages: Vec::new(),
    };
    loop {
        if let Some(line) = editor.helper() {
            line.typed.set(false);
        }
        match editor.readline(">>> ") {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                let _ = editor.add_history_entry(line.as_str());
                if !chat.take(&line)? {
                    break;
                }
            }
            // Ctrl-C clears what was typed, and leaves when nothing was.
            Err(ReadlineError::Interrupted) if editor.helper().is_some_and(|line| line.typed.get()) => {}
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read from the terminal"),
        }
    }
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        note(format_args!("note: the history could not be saved in {}: {error}", path.display()));
    }
    Ok(())
}

/// What `/system` is given to forget its text.
const NO_SYSTEM: &str = "-";

impl Chat<'_> {
    /// Does what a line asks for; false if it asks to leave. What goes wrong in a turn is said and ends no chat.
    fn take(&mut self, input: &str) -> Result<bool> {
        // What stands in quotes or goes over several lines is a message, whatever it begins with.
        if input.trim_start().starts_with(QUOTES) || input.trim().contains('\n') {
            return self.turn(&joined(input)).map(|()| true);
        }
        let line = input.trim();
        let done = match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("/exit" | "/quit" | "/bye", _) => return Ok(false),
            ("/help" | "/?", _) => {
                note(HELP);
                Ok(())
            }
            ("/clear", _) => {
                self.messages.clear();
                note("the conversation is forgotten");
                Ok(())
            }
            ("/system", text) => self.set_system(text.trim()),
            ("/set", rest) => self.set(rest.trim()),
            ("/save", path) => self.save(path.trim()),
            (command, _) if command.starts_with('/') => {
                note(format_args!("there is no command {command}; /help lists them"));
                Ok(())
            }
            _ => return self.turn(line).map(|()| true),
        };
        if let Err(error) = done {
            note(format_args!("error: {error:#}"));
        }
        Ok(true)
    }

    fn set_system(&mut self, text: &str) -> Result<()> {
        if !self.session.templated {
            bail!("without a chat template there is no place for it");
        }
        if text.is_empty() {
            note(self.system.as_deref().unwrap_or("(none)"));
        } else if text == NO_SYSTEM {
            self.system = None;
        } else {
            self.system = Some(text.to_string());
        }
        Ok(())
    }

    fn set(&mut self, rest: &str) -> Result<()> {
        if rest.is_empty() {
            self.show_settings();
            return Ok(());
        }
        let (name, value) = rest.split_once([' ', '=']).context("write /set NAME VALUE")?;
        let value = value.trim();
        let number = || value.parse::<f32>().with_context(|| format!("{value:?} is no number"));
        let whole = || value.parse::<usize>().with_context(|| format!("{value:?} is no whole number"));
        let mut changed = self.sampling.clone();
        match name.trim().replace('_', "-").as_str() {
            "temperature" => changed.temperature = number()?,
            "top-k" => changed.top_k = whole()?,
            "top-p" => changed.top_p = number()?,
            "min-p" => changed.min_p = number()?,
            "repeat-penalty" => changed.repeat_penalty = number()?,
            "presence-penalty" => changed.presence_penalty = number()?,
            "frequency-penalty" => changed.frequency_penalty = number()?,
            "seed" => {
                changed.seed = value.parse().with_context(|| format!("{value:?} is no whole number"))?
            }
            "max-tokens" => match whole()? {
                0 => bail!("at least one token is needed"),
                n => self.max_tokens = Some(n),
            },
            other => bail!("there is no setting {other}; /help lists them"),
        }
        changed.check()?;
        self.sampling = changed;
        Ok(())
    }

    fn show_settings(&self) {
        let s = &self.sampling;
        let max_tokens = self.max_tokens.map_or("(as many as fit)".to_string(), |n| n.to_string());
        note(format_args!(
            "temperature {}  top-k {}  top-p {}  min-p {}  seed {}\nrepeat-penalty {}  presence-penalty {}  \
             frequency-penalty {}  max-tokens {max_tokens}",
            s.temperature,
            s.top_k,
            s.top_p,
            s.min_p,
            s.seed,
            s.repeat_penalty,
            s.presence_penalty,
            s.frequency_penalty
        ));
    }

    fn save(&self, path: &str) -> Result<()> {
        if path.is_empty() {
            bail!("write /save FILE");
        }
        let messages: Vec<_> =
            self.all_messages().iter().map(|m| json!({ "role": m.role, "content": m.content })).collect();
        let text = serde_json::to_string_pretty(&messages)?;
        let mut file = fs::File::create_new(path).with_context(|| format!("cannot write {path}"))?;
        std::io::Write::write_all(&mut file, text.as_bytes())
            .with_context(|| format!("cannot write {path}"))?;
        note(format_args!("{} messages written to {path}", messages.len()));
        Ok(())
    }

    fn all_messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// One question and its answer. Only an output that cannot be written to ends the chat.
    fn turn(&mut self, line: &str) -> Result<()> {
        let begin = Instant::now();
        self.messages.push(Message::new("user", line));
        let encoded = match self.session.templated {
            true => self.session.encode_chat(&self.all_messages()),
            false => self.session.encode_raw(line),
        };
        let prompt = match encoded {
            Ok(prompt) => prompt,
            Err(error) => return self.failed(&error),
        };
        let mut request = self.session.request(self.args, prompt, self.sampling.clone());
        request.max_tokens = self.max_tokens.unwrap_or(request.max_tokens);
        let mut out = Out::new();
        let mut closed = false;
        let mut show = |text: &str| {
            let shown = out.text(text).and_then(|()| out.flush());
            closed = shown.is_err();
            shown
        };
        let session = &mut *self.session;
        let mut watcher = Watcher {
            tokenizer: &session.tokenizer,
            continues: !session.templated,
            stops: &self.args.stop,
            interrupt: &self.cx.interrupt,
            show: &mut show,
        };
        let made = answer(&mut session.engine, request, &mut watcher);
        let answer = match made {
            Ok(answer) => answer,
            Err(error) if closed => return Err(error),
            Err(error) => return self.failed(&error),
        };
        out.line("")?;
        out.flush()?;
        drop(out);
        self.cx.interrupt.clear();
        if answer.reason == Reason::Interrupted {
            note("(interrupted)");
        }
        note(self.session.summary(&answer, begin));
        self.session.load = Duration::ZERO;
        if self.max_tokens.is_none() {
            self.session.note_if_full(self.args, &answer);
        }
        self.messages.push(Message::new("assistant", answer.text));
        Ok(())
    }

    /// Takes the question back that could not be answered.
    fn failed(&mut self, error: &anyhow::Error) -> Result<()> {
        self.messages.pop();
        note(format_args!("error: {error:#}"));
        if self.messages.len() > 1 {
            note("/clear forgets the conversation and makes room");
        }
        Ok(())
    }
}

fn editor() -> Result<Editor<Line, FileHistory>> {
    // Where stdout is a file, the answers go there and the prompt still to the terminal.
    let behavior = if std::io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
    let config =
        Config::builder().max_history_size(1000)?.history_ignore_space(true).behavior(behavior).build();
    let mut editor = Editor::with_config(config).context("cannot use this terminal")?;
    editor.set_helper(Some(Line::default()));
    Ok(editor)
}

fn history_path() -> Option<PathBuf> {
    let root = Store::from_env().root().ok()?.to_path_buf();
    // Without a folder there is no history, which is no reason not to chat.
    fs::create_dir_all(&root).ok()?;
    Some(root.join("history.txt"))
}

/// A line of input: complete, or to be continued.
#[derive(Default)]
struct Line {
    /// Whether there is anything in it.
    typed: Cell<bool>,
}

impl Helper for Line {}
impl Highlighter for Line {}
/// Gives no hints: it is told of every change, which nothing else is.
impl Hinter for Line {
    type Hint = String;

    fn hint(&self, line: &str, _pos: usize, _: &rustyline::Context<'_>) -> Option<String> {
        self.typed.set(!line.is_empty());
        None
    }
}

impl Completer for Line {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..pos];
        let fits = |command: &&&str| typed.starts_with('/') && command.starts_with(typed);
        Ok((0, COMMANDS.iter().filter(fits).map(ToString::to_string).collect()))
    }
}

impl Validator for Line {
    fn validate(&self, cx: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if goes_on(cx.input()) { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

fn goes_on(input: &str) -> bool {
    input.matches(QUOTES).count() % 2 == 1 || input.ends_with('\\')
}

/// The text of an input without the marks that joined its lines.
fn joined(input: &str) -> String {
    let trimmed = input.trim();
    match trimmed.strip_prefix(QUOTES).and_then(|rest| rest.strip_suffix(QUOTES)) {
        Some(quoted) => quoted.to_string(),
        None => input.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_on_where_they_say_so() {
        assert!(!goes_on("one line"));
        assert!(goes_on("first \\"));
        assert!(goes_on("\"\"\"first\nsecond"));
        assert!(!goes_on("\"\"\"first\nsecond\"\"\""));
        assert_eq!(joined("a \\\nb"), "a \nb");
        assert_eq!(joined("\"\"\"a\nb\"\"\""), "a\nb");
        assert_eq!(joined("plain"), "plain");
    }

    #[test]
    fn every_command_is_in_the_help() {
        COMMANDS.iter().for_each(|command| assert!(HELP.contains(command), "{command}"));
    }
}
