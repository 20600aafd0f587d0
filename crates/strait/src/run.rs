//! `strait run`: chat in the terminal, in this process.

use std::io::{BufRead, IsTerminal, Read, Write, stdin, stdout};

use anyhow::{anyhow, bail};
use clap::Args;
use engine::request::{End, Event, Request, Sampling};
use engine::{EngineHandle, Events};
use serde_json::{Map, Value, json};
use text::{ChatInput, Detokenizer, encode_chat};

use crate::failure::Failure;
use crate::flags::ModelFlags;
use crate::load::{self, Loaded, Text};
use crate::logging;
use crate::model_dir::ModelFiles;
use crate::settings::ModelSettings;

/// Of a question from a pipe.
const STDIN_BYTES_MAX: u64 = 16 << 20;

/// Chat with a model in the terminal, or ask it one question
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strait run 'Tell me a joke'\n  echo 'What is 3 + 4?' | strait run\n  strait run"
)]
pub(crate) struct Flags {
    /// One question, answered once; without it, and on a terminal, a conversation
    prompt: Option<String>,
    /// Longest answer, in tokens [default: what the context leaves]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// 0 always takes the likeliest token [default: the checkpoint's, else 1]
    #[arg(long, value_name = "0..2")]
    temperature: Option<f32>,
    /// Said to the model before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    model: ModelFlags,
}

pub(crate) fn main(flags: Flags) -> Result<(), Failure> {
    if flags.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
        return Err(Failure::Usage("temperature: give a number from 0 to 2".into()));
    }
    if flags.max_tokens == Some(0) {
        return Err(Failure::Usage("max-tokens: give a number of tokens, 1 or more".into()));
    }
    let settings = ModelSettings::build(&flags.model, 1)?;
    logging::start(&logging::quiet());
    let files = ModelFiles::open(&settings.source)?;
    let loaded = load::load(&files, &settings, &|_| ())?;
    let mut chat = Chat::new(loaded, &flags)?;
    match flags.prompt {
        Some(prompt) => chat.answer(prompt)?,
        None if !stdin().is_terminal() => chat.answer(read_all()?)?,
        None => chat.converse(&files.name, &mut stdin().lock())?,
    }
    Ok(())
}

fn read_all() -> anyhow::Result<String> {
    let mut question = String::new();
    stdin().take(STDIN_BYTES_MAX).read_to_string(&mut question)?;
    let question = question.trim_end();
    if question.is_empty() {
        bail!("standard input holds no question; give it there or as an argument");
    }
    Ok(question.to_owned())
}

/// A conversation: what was said, and the engine that goes on with it.
struct Chat {
    engine: EngineHandle,
    text: Text,
    eos_ids: Vec<u32>,
    sampling: Sampling,
    max_tokens: Option<usize>,
    system: Option<String>,
    messages: Vec<Value>,
}

impl Chat {
    fn new(loaded: Loaded, flags: &Flags) -> anyhow::Result<Self> {
        let Loaded { model, text, eos_ids, generation, fingerprint, .. } = loaded;
        if text.template.is_none() {
            bail!(
                "this checkpoint has no chat template, so it cannot chat; `strait serve` completes plain text"
            );
        }
        let default = load::default_temperature(&generation).unwrap_or(1.0);
        let sampling = Sampling {
            temperature: flags.temperature.unwrap_or(default),
            top_p: generation.top_p.unwrap_or(1.0),
            top_k: generation.top_k.unwrap_or(0),
            repetition_penalty: generation.repetition_penalty.unwrap_or(1.0),
            ..Sampling::default()
        };
        let options = engine::Options {
            max_waiting: 1,
            sampled_vocab: text.tokenizer.vocab_size(),
            model_identity: fingerprint,
            ..Default::default()
        };
        // The thread ends when the handle is dropped, or with the process.
        let (engine, _) = engine::start(model, options);
        let (max_tokens, system) = (flags.max_tokens, flags.system.clone());
        let mut chat = Self { engine, text, eos_ids, sampling, max_tokens, system, messages: Vec::new() };
        chat.reset();
        Ok(chat)
    }

    fn reset(&mut self) {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        self.messages = system.collect();
    }

    fn converse(&mut self, name: &str, input: &mut dyn BufRead) -> anyhow::Result<()> {
        println!("Chat with {name}. /reset forgets what was said; Ctrl-D or Ctrl-C ends.");
        loop {
            print!("> ");
            stdout().flush()?;
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                println!();
                return Ok(());
            }
            match line.trim() {
                "" => {}
                "/reset" => self.reset(),
                said => {
                    if let Err(error) = self.answer(said.to_owned()) {
                        eprintln!("{error:#}");
                    }
                }
            }
        }
    }

    /// Streams the answer to standard output. A question that failed is forgotten.
    fn answer(&mut self, question: String) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": question}));
        match self.ask() {
            Ok(answer) => {
                self.messages.push(json!({"role": "assistant", "content": answer}));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    fn ask(&self) -> anyhow::Result<String> {
        let template = self.text.template.as_ref().ok_or_else(|| anyhow!("no chat template"))?;
        let (messages, kwargs) = (&self.messages, &Map::new());
        let input = ChatInput {
            messages,
            tools: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs,
        };
        let prompt = encode_chat(&self.text.tokenizer, template, &input)?;
        let room = self.engine.limits().context_len.saturating_sub(prompt.ids.len());
        let request = Request {
            max_new_tokens: self.max_tokens.unwrap_or(room).clamp(1, room.max(1)),
            stop_ids: self.eos_ids.clone(),
            sampling: self.sampling.clone(),
            prompt: prompt.ids,
            drawn: prompt.answers,
            ..Request::default()
        };
        let mut choices = self.engine.submit(request)?;
        self.stream(choices.pop().ok_or_else(|| anyhow!("the engine gave no answer"))?)
    }

    fn stream(&self, mut events: Events) -> anyhow::Result<String> {
        let mut detokenizer = Detokenizer::new(self.text.tokenizer.clone(), true);
        let mut answer = String::new();
        let mut out = stdout().lock();
        let mut say = |piece: String| -> anyhow::Result<()> {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
            answer.push_str(&piece);
            Ok(())
        };
        while let Some(event) = events.blocking_recv() {
            match event {
                Event::Started { .. } | Event::Prompt(_) => {}
                Event::Tokens(tokens) => {
                    let ids = tokens.iter().map(|token| token.id).filter(|id| !self.eos_ids.contains(id));
                    ids.map(|id| detokenizer.push(id)).try_for_each(&mut say)?;
                }
                Event::End(End::Finished(_)) => break,
                Event::End(End::Stuck) => bail!("no token was left to draw"),
                Event::End(End::Expired) => bail!("the answer took too long"),
                Event::End(End::Rejected(why) | End::Failed(why)) => bail!(why),
            }
        }
        say(detokenizer.finish())?;
        writeln!(out)?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ModelSource;

    /// What was said, as `role: text`, after a conversation with the demo.
    fn conversation(system: Option<&str>, typed: &str) -> Vec<String> {
        let model = ModelFlags { max_model_len: Some(64), threads: Some(1), ..ModelFlags::default() };
        let settings = ModelSettings::build(&model, 1).unwrap();
        let files = ModelFiles::open(&ModelSource::Demo).unwrap();
        let loaded = load::load(&files, &settings, &|_| ()).unwrap();
        let system = system.map(str::to_owned);
        let flags = Flags { prompt: None, max_tokens: None, temperature: Some(0.0), system, model };
        let mut chat = Chat::new(loaded, &flags).unwrap();
        chat.converse("demo", &mut typed.as_bytes()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        chat.messages.iter().map(|m| format!("{}: {}", text(&m["role"]), text(&m["content"]))).collect()
    }

    #[test]
    fn answers_are_remembered_until_reset() {
        let asked = conversation(None, "What is 3 + 4?\n\n");
        assert_eq!(asked, ["user: What is 3 + 4?", "assistant: 3 + 4 = 7"]);
        let reset = conversation(Some("Be brief."), "What is 3 + 4?\n/reset\n");
        assert_eq!(reset, ["system: Be brief."]);
    }

    #[test]
    fn a_question_beyond_the_context_is_forgotten() {
        let asked = conversation(None, &format!("{}\nWhat is 3 + 4?\n", "many words ".repeat(64)));
        assert_eq!(asked, ["user: What is 3 + 4?", "assistant: 3 + 4 = 7"]);
    }
}
