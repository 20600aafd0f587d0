//! Which tokens of a conversation the model drew itself.

mod fixture;

use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use text::{ChatInput, ChatTemplate, EncodedChat, Tokenizer, encode_chat};

/// A checkpoint's text side, and what else its template is given.
struct Chat {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    kwargs: Map<String, Value>,
}

impl Chat {
    fn new(tokenizer_json: &[u8], config: &[u8]) -> Self {
        let tokenizer = Tokenizer::from_bytes(tokenizer_json, Some(config)).unwrap();
        let template = ChatTemplate::from_config(config).unwrap().unwrap();
        Self { tokenizer, template, kwargs: Map::new() }
    }

    fn fixture(name: &str) -> Self {
        Self::new(&fixture::read(&format!("{name}/tokenizer.json")), &fixture::config(name))
    }

    fn demo() -> Self {
        let read = |file: &str| {
            let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../strait/demo");
            std::fs::read(demo.join(file)).unwrap()
        };
        Self::new(&read("tokenizer.json"), &read("tokenizer_config.json"))
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        self.kwargs.insert(name.to_owned(), value);
        self
    }

    fn with_template(mut self, source: &str) -> Self {
        self.template = ChatTemplate::new(source, self.tokenizer.special_tokens()).unwrap();
        self
    }

    fn encode(&self, messages: &[Value], add_generation_prompt: bool) -> EncodedChat {
        let input = ChatInput {
            messages,
            tools: None,
            add_generation_prompt,
            continue_final_message: false,
            kwargs: &self.kwargs,
        };
        encode_chat(&self.tokenizer, &self.template, &input).unwrap()
    }

    fn answers(&self, messages: &[Value]) -> Vec<String> {
        let chat = self.encode(messages, true);
        let closed = self.encode(messages, false);
        assert_eq!(closed.answers, chat.answers, "{messages:?}");
        chat.answers.iter().map(|range| self.tokenizer.decode(&chat.ids[range.clone()], false)).collect()
    }
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

const CONTENTS: [&str; 8] = [
    "No, it left at nine.",
    "明日? 😀 é",
    " both ends \n\n",
    "\nAssistant: I am <｜Assistant｜> <|assistant|>",
    "<|im_end|>typed<｜end▁of▁sentence｜>",
    "a <",
    "No, it left at nine.",
    "\u{F0000}\u{F0003}3.14159",
];

/// Each turn's prompt begins the next turn's, and right behind it is what the model drew.
#[test]
fn an_answer_stands_behind_its_prompt() {
    let check = |chat: Chat, drawn: fn(&str) -> String| {
        let mut messages = vec![user("Assistant: é?")];
        let mut prompts = vec![chat.encode(&messages, true).ids];
        let mut expected: Vec<String> = Vec::new();
        for content in CONTENTS {
            messages.extend([assistant(content), user("And <｜User｜> 7?")]);
            expected.push(drawn(content));
            let encoded = chat.encode(&messages, true);
            assert_eq!(chat.answers(&messages), expected);
            for (range, prompt) in encoded.answers.iter().zip(&prompts) {
                assert_eq!(&encoded.ids[..range.start], prompt, "{content}");
            }
            prompts.push(encoded.ids);
        }
    };
    check(Chat::fixture("v3"), str::to_owned);
    check(Chat::fixture("kimi"), str::to_owned);
    check(Chat::demo(), str::to_owned);
    check(Chat::fixture("v2"), |content| format!(" {content}"));
    let glm = Chat::fixture("glm").with("enable_thinking", json!(false));
    check(glm, |content| format!("\n{}", content.trim()));
}

/// Some templates write no prompt behind a tool's words: there, the answer begins at once.
#[test]
fn answers_behind_tools_have_their_own_prompt() {
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let called = json!({"role": "assistant", "content": "I call", "tool_calls": [call]});
    let tool = json!({"role": "tool", "tool_call_id": "a", "content": "19"});
    let messages = [
        user("u"),
        called,
        tool.clone(),
        assistant(" It is 19."),
        user("v"),
        assistant("So"),
        tool,
        user("w"),
    ];
    for chat in [Chat::fixture("v3"), Chat::fixture("kimi"), Chat::demo()] {
        for (until, expected) in [(3, 1), (5, 2), (7, 3), (8, 3)] {
            let expected = &["I call", " It is 19.", "So"][..expected];
            assert_eq!(chat.answers(&messages[..until]), expected);
            let encoded = chat.encode(&messages[..until], true);
            for (range, at) in encoded.answers.iter().zip([1, 3, 5]) {
                assert_eq!(encoded.ids[..range.start], chat.encode(&messages[..at], true).ids);
            }
        }
    }
}

#[test]
fn changed_answers_are_left_out() {
    let check = |chat: &Chat, answer: Value, expected: &[&str]| {
        let messages = [
            user("u"),
            assistant("first"),
            user("v"),
            answer.clone(),
            user("w"),
            assistant("last"),
            user("x"),
        ];
        assert_eq!(chat.answers(&messages), expected, "{answer}");
    };
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let v3 = Chat::fixture("v3");
    let others = ["first", "last"];
    check(&v3, assistant(""), &others);
    check(&v3, assistant(" \n"), &others);
    check(&v3, json!({"role": "assistant", "content": null, "tool_calls": [call]}), &others);
    check(&v3, json!({"role": "assistant", "content": ["part"]}), &others);
    check(&v3, user("first"), &others);
    check(
        &v3,
        json!({"role": "assistant", "content": "I call", "tool_calls": [call]}),
        &["first", "I call", "last"],
    );
    check(&v3, assistant("<think>why</think>so"), &["first", "<think>why</think>so", "last"]);
    // Its prompt ends in `<think>`, which it does not write before past answers.
    check(&Chat::fixture("r1"), assistant("<think>why</think>so"), &[]);
    // Empty reasoning that the model did not draw, and some that it did.
    check(&Chat::fixture("glm"), assistant("plain"), &[]);
    check(&Chat::fixture("glm"), assistant("<think></think>\nplain"), &["\n<think></think>\nplain"]);
    check(&Chat::fixture("glm"), assistant("<think>cut</think>\nplain"), &[]);
}

#[test]
fn templates_that_look_at_answers_get_no_places() {
    let check = |source: &str, content: &str, expected: &[&str]| {
        let chat = Chat::fixture("v3").with_template(source);
        assert_eq!(chat.answers(&[user("u"), assistant(content), user("v")]), expected, "{source}");
    };
    let prompt = "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}";
    let each =
        |written: &str| format!("{{% for m in messages %}}<｜Assistant｜>{written}{{% endfor %}}{prompt}");
    check(&each("{{ m.content }}"), "abc", &["abc"]);
    check(&each("{{ m.content | trim }}"), " abc\n", &["abc"]);
    check(&each("{{ m.content | upper }}"), "abc", &[]);
    check(&each("{{ m.content }}{{ m.content }}"), "abc", &["abc"]);
    check(&each("{{ m.content | length }}{{ m.content }}"), "abc", &[]);
    check(&each("{{ m.content }}{{ raise_exception('odd') if m.content | length == 4 }}"), "abc", &[]);
    check(&each("{{ m.content | tojson }}"), "abc", &[]);
    check(&each("{{ m.content }}{{ add_generation_prompt }}"), "abc", &[]);
    // What is written only because of the letter.
    check(
        "{% for m in messages if m.role == 'assistant' %}{% set rest = m.content.split('b')[1] %}\
         {% if rest %}:{{ rest }}{% endif %}{% endfor %}",
        "ab",
        &[],
    );
    // No prompt: answers begin where their text does.
    check("{% for m in messages %}{{ m.content }}\n{% endfor %}", " abc", &[" abc"]);
    check(
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<｜Assistant｜>{% endfor %}",
        "abc",
        &["abc"],
    );
}

/// SentencePiece's spelling, in which the whole text is one part.
fn in_one_part(template: &str) -> Chat {
    let tokens = ["▁", "a", "b", ":", "▁a", ":a", "b:"];
    let tokenizer = fixture::sentencepiece(&tokens, &[["▁", "a"], [":", "a"], ["b", ":"]], &[]);
    let template = ChatTemplate::new(template, tokenizer.special_tokens()).unwrap();
    Chat { tokenizer, template, kwargs: Map::new() }
}

/// A token that an answer shares with its neighbour belongs to the answer, and to the first of two.
#[test]
fn shared_tokens_are_counted_in() {
    let check = |template: &str, contents: &[&str], expected: &[&[&str]]| {
        let chat = in_one_part(template);
        let messages: Vec<Value> = contents.iter().map(|content| assistant(content)).collect();
        let encoded = chat.encode(&messages, false);
        let tokens = |range: &std::ops::Range<usize>| -> Vec<String> {
            encoded.ids[range.clone()].iter().map(|&id| chat.tokenizer.token_text(id)).collect()
        };
        assert_eq!(encoded.answers.iter().map(tokens).collect::<Vec<_>>(), expected, "{contents:?}");
    };
    let turns =
        "{% for m in messages %}-{{ m.content }}|{% endfor %}{% if add_generation_prompt %}-{% endif %}";
    check(turns, &["a b", "ba é"], &[&["a", " ", "b"], &["b", "a", " ", "\u{FFFD}", "\u{FFFD}"]]);
    let colons =
        "{% for m in messages %}:{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}";
    check(colons, &["a", "ba"], &[&[":a"], &["b", "a"]]);
    check(colons, &["b", "ab"], &[&["b"], &[":a", "b"]]);
    check(colons, &["b", "bb"], &[&["b:"], &["b", "b"]]);
    let joined = "-{% for m in messages %}{{ m.content }}{% endfor %}";
    check(joined, &["bb", ":"], &[&["b", "b:"]]);
    // Another answer's words stand where some were cut.
    let cut =
        "-{% for m in messages %}{{ m.content.split(' ') | last }}{{ ' ' if not loop.last }}{% endfor %}";
    check(cut, &["a", "a b"], &[&["a"]]);
    check(joined, &["b", ":b"], &[&["b:"], &["b"]]);
}

/// A control token that the vocabulary spells, too, in letters that are half the template's.
#[test]
fn letters_of_a_control_token_are_placed() {
    let mut file: Value = serde_json::from_slice(&fixture::read("r1/tokenizer.json")).unwrap();
    for token in file["added_tokens"].as_array().unwrap().clone() {
        file["model"]["vocab"][token["content"].as_str().unwrap()] = token["id"].clone();
    }
    file["model"]["ignore_merges"] = true.into();
    file["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let chat = Chat::new(file.to_string().as_bytes(), &fixture::config("r1"))
        .with_template("{{ '<' }}{% for m in messages %}{{ m.content }}{% endfor %}");
    let encoded = chat.encode(&[assistant("think>")], false);
    assert_eq!(encoded.ids.len(), 1 + "<think>".len());
    assert_eq!(encoded.answers, vec![2..8]);
}

const ROLES: [&str; 3] = ["user", "assistant", "system"];

static EVERY: LazyLock<Vec<Chat>> = LazyLock::new(|| {
    let joined = in_one_part("{% for m in messages %}{{ m.content }}{% endfor %}");
    fixture::NAMES.map(Chat::fixture).into_iter().chain([Chat::demo(), joined]).collect()
});

static PLAIN: LazyLock<[Chat; 3]> =
    LazyLock::new(|| [Chat::fixture("v3"), Chat::fixture("kimi"), Chat::demo()]);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn answers_are_rising_and_within(
        messages in prop::collection::vec((0..3usize, "[ \n]?(<think>|</think>|<｜User｜>|[a:<é😀\u{F0000}]){0,4}[ \n]?"), 0..8),
        add_generation_prompt: bool,
    ) {
        let messages: Vec<Value> = messages
            .into_iter()
            .map(|(role, content)| json!({"role": ROLES[role], "content": content}))
            .collect();
        for chat in EVERY.iter() {
            let encoded = chat.encode(&messages, add_generation_prompt);
            let mut taken = 0;
            for range in &encoded.answers {
                prop_assert!(taken <= range.start && range.start < range.end, "{:?}", encoded.answers);
                taken = range.end;
            }
            prop_assert!(taken <= encoded.ids.len());
            prop_assert!(encoded.answers.len() <= messages.iter().filter(|message| message["role"] == "assistant").count());
        }
    }

    /// Looking for answers changes no id.
    #[test]
    fn ids_are_those_of_the_text(contents in prop::collection::vec("[ \n]?[a-c:é😀\u{F0000}1 ]{0,6}", 0..8)) {
        let turn = |(i, content): (usize, &String)| if i % 2 == 0 { user(content) } else { assistant(content) };
        let messages: Vec<Value> = contents.iter().enumerate().map(turn).collect();
        for chat in PLAIN.iter() {
            let input = ChatInput { messages: &messages, tools: None, add_generation_prompt: true, continue_final_message: false, kwargs: &chat.kwargs };
            let text = chat.template.render(&input).unwrap().text;
            prop_assert_eq!(chat.encode(&messages, true).ids, chat.tokenizer.encode(&text, false).unwrap());
        }
    }
}
