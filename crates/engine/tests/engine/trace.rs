//! The scheduler's decisions, as text.
//!
//! A script is a row of parts between bars: sizes and the policy; requests `name=prompt+new` with what
//! else they ask for; `-name`, whose client leaves; `time s`, what the engine takes for the time from
//! now on; and `step:` with what the step is expected to do: tokens computed for each row, `name<n` for
//! one that starts with `n` cached tokens, `name.` for an answer that is complete, `name!` for a
//! failure, `name#` for one that is too late, `name?` for a refusal, and `[n]` blocks in use after it.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use engine::request::{End, Request};
use engine::testing::{FakeRunner, Row, Trouble, limits};
use engine::{Options, Policy};

use crate::harness::{Client, Limits, Rig, request};

fn check(script: &str) {
    check_with(script, |runner| runner);
}

fn check_with(script: &str, configure: impl FnOnce(FakeRunner) -> FakeRunner) {
    let words = script.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts = words.split(" | ");
    let mut played = vec![parts.next().unwrap().to_string()];
    let (limits, options) = parse_sizes(&played[0]);
    let (sender, rows) = mpsc::channel();
    let rig = Rig::with_options(configure(FakeRunner::new(limits)).report_to(sender), options);
    let mut stage = Stage { start: rig.now, rig, rows, prompts: BTreeMap::new(), clients: BTreeMap::new() };
    for part in parts {
        let step = part.starts_with("step:");
        played.push(if step { stage.step() } else { stage.arrange(part) });
    }
    assert_eq!(played.join(" | "), words);
    stage.clients.clear();
    stage.rig.finish();
}

struct Stage {
    start: std::time::Instant,
    rig: Rig,
    rows: mpsc::Receiver<Vec<Row>>,
    prompts: BTreeMap<char, Vec<u32>>,
    /// By name and choice.
    clients: BTreeMap<(char, usize), Client>,
}

impl Stage {
    fn arrange(&mut self, part: &str) -> String {
        for word in part.split(' ') {
            if let Some((name, wishes)) = word.split_once('=') {
                let name = name.parse().unwrap();
                let request = self.parse_request(name, wishes);
                self.prompts.insert(name, request.prompt.clone());
                let choices = self.rig.submit_choices(request).into_iter().enumerate();
                self.clients.extend(choices.map(|(choice, client)| ((name, choice), client)));
            } else if let Some(name) = word.strip_prefix('-') {
                self.clients.retain(|key, _| key.0 != name.parse().unwrap());
            } else if let Ok(seconds) = word.parse() {
                self.rig.now = self.start + Duration::from_secs(seconds);
            }
        }
        part.into()
    }

    fn parse_request(&self, name: char, wishes: &str) -> Request {
        let mut wishes = wishes.split(',');
        let (prompt_len, new) = wishes.next().unwrap().split_once('+').unwrap();
        let mut request =
            request(name as u32 - 'a' as u32, prompt_len.parse().unwrap(), new.parse().unwrap());
        for wish in wishes {
            let number = || wish[1..].parse().unwrap();
            match &wish[..1] {
                "s" => request.prompt_logprobs = Some(0),
                "n" => request.n = number() as usize,
                "p" => request.priority = number(),
                "k" => request.cache_salt = wish.into(),
                "d" => request.deadline = Some(self.start + Duration::from_secs(number() as u64)),
                // `@a8`: the first 8 tokens are those of a.
                "@" => {
                    let (other, len) =
                        (&self.prompts[&wish.as_bytes()[1].into()], wish[2..].parse().unwrap());
                    request.prompt.splice(..len, other[..len].iter().copied());
                }
                other => panic!("{other}"),
            }
        }
        request
    }

    fn step(&mut self) -> String {
        self.rig.step();
        let mut text = String::from("step:");
        for row in self.rows.try_iter().flatten() {
            let is = |prompt: &Vec<u32>| row.tokens.iter().zip(prompt).all(|(a, b)| a == b);
            let (name, _) = self.prompts.iter().find(|(_, prompt)| is(prompt)).unwrap();
            text += &format!(" {name}+{}", row.n_computed);
        }
        self.clients.retain(|(name, _), client| {
            let started = client.heard().started;
            let heard = client.listen();
            if heard.started && !started && client.cached_tokens > 0 {
                text += &format!(" {name}<{}", client.cached_tokens);
            }
            let mark = match &client.heard().end {
                None => return true,
                Some(End::Finished(_)) => '.',
                Some(End::Stuck | End::Failed(_)) => '!',
                Some(End::Rejected(_)) => '?',
                Some(End::Expired) => '#',
            };
            text += &format!(" {name}{mark}");
            false
        });
        text + &format!(" [{}]", self.rig.handle.snapshot().blocks_used)
    }
}

fn parse_sizes(part: &str) -> (Limits, Options) {
    // What a script does not name is as generous as can be.
    let policy = Policy {
        prompt_tokens_beside_answers: usize::MAX,
        spare_tokens: usize::MAX,
        overtaken_max: usize::MAX,
        ..Policy::default()
    };
    let (mut limits, mut options) = (limits(), Options { policy, ..Options::default() });
    let words: Vec<&str> = part.split(' ').collect();
    for pair in words.chunks(2) {
        let number = || pair[1].parse().unwrap();
        match pair[0] {
            "pool" => {
                let (n_blocks, block_len) = pair[1].split_once('x').unwrap();
                (limits.n_blocks, limits.block_len) = (n_blocks.parse().unwrap(), block_len.parse().unwrap());
            }
            "budget" => limits.step_tokens = number(),
            "rows" => limits.step_rows = number(),
            "outputs" => limits.step_outputs = number(),
            "context" => limits.context_len = number(),
            "unit" => limits.prefill_unit = number(),
            "share" => options.policy.prompt_tokens_beside_answers = number(),
            "spare" => options.policy.spare_tokens = number(),
            "overtaken" => options.policy.overtaken_max = number(),
            "cache" => options.prefix_cache = pair[1] == "on",
            other => panic!("{other}"),
        }
    }
    (limits, options)
}

#[test]
fn prompts_are_cut_and_packed() {
    // Half of the budget for the first in rank, the rest for the shortest.
    check(
        "pool 17x4 budget 16 | a=10+2 b=9+2 | step: a+7 b+9 [6] | step: a+3 b+1 b. [3] \
         | step: a+1 a. [0]",
    );
    check("pool 9x4 budget 4 | a=10+1 | step: a+4 [3] | step: a+4 [3] | step: a+2 a. [0]");
    check("pool 17x4 budget 16 | a=3+1 b=4+1 c=5+1 | step: a+3 b+4 c+5 a. b. c. [0]");
    check(
        "pool 33x4 budget 16 | a=20+1 b=10+1 c=3+1 | step: a+3 b+10 c+3 b. c. [5] | step: a+16 [5] \
         | step: a+1 a. [0]",
    );
}

#[test]
fn prompts_are_cut_at_units_only() {
    check(
        "pool 33x4 budget 16 rows 4 outputs 16 unit 5 | a=14+2 b=12+2 c=3+2 | step: b+10 c+3 [8] \
         | step: a+10 b+2 c+1 c. [7] | step: a+4 b+1 b. [4] | step: a+1 a. [0]",
    );
}

#[test]
fn a_long_prompt_delays_no_answer_and_no_answer_a_prompt() {
    check(
        "pool 33x4 budget 8 | a=2+9 b=3+9 | step: a+2 b+3 [2] | c=30+1 d=4+1 \
         | step: a+1 b+1 c+2 d+4 d. [10] | step: a+1 b+1 c+6 [11] | step: a+1 b+1 c+6 [12] \
         | step: a+1 b+1 c+6 [12] | step: a+1 b+1 c+6 [12] | step: a+1 b+1 c+4 c. [5]",
    );
    check(
        "pool 33x4 budget 16 share 3 | a=2+9 | step: a+2 [1] | b=8+1 | step: a+1 b+3 [3] \
         | step: a+1 b+4 [3] | step: a+1 b+1 b. [2]",
    );
    check("pool 33x4 budget 16 share 3 | a=8+1 b=8+1 | step: a+8 b+8 a. b. [0]");
    check(
        "pool 33x4 budget 16 rows 4 outputs 16 share 3 unit 5 | a=2+9 | step: a+2 [1] | b=12+1 \
         | step: a+1 b+5 [4] | step: a+1 b+5 [4] | step: a+1 b+2 b. [2]",
    );
}

#[test]
fn a_budget_smaller_than_the_crowd_lets_no_more_in() {
    check(
        "pool 33x4 budget 2 rows 3 | a=1+3 b=1+2 c=1+2 | step: a+1 b+1 [2] | step: a+1 b+1 b. [1] \
         | step: a+1 c+1 a. [1] | step: c+1 c. [0]",
    );
    check(
        "pool 33x4 budget 1 rows 3 | a=1+2 b=1+1 | step: a+1 [1] | step: a+1 a. [0] \
         | step: b+1 b. [0]",
    );
    check(
        "pool 33x4 budget 16 rows 1 | a=1+2 b=1+1 | step: a+1 [1] | step: a+1 a. [0] \
         | step: b+1 b. [0]",
    );
    check(
        "pool 33x4 budget 16 outputs 1 | a=1+2 b=1+2 | step: a+1 [1] | step: a+1 a. [0] \
         | step: b+1 [1] | step: b+1 b. [0]",
    );
}

#[test]
fn who_does_not_fit_waits_and_nobody_overtakes() {
    // Seven blocks can be lent; b needs five at its longest, c would fit beside a.
    check(
        "pool 8x4 budget 16 | a=8+3 b=16+4 c=2+1 | step: a+8 [2] | step: a+1 [3] | step: a+1 a. [0] \
         | step: b+14 c+2 c. [4] | step: b+2 [4] | step: b+1 [5] | step: b+1 [5] | step: b+1 b. [0]",
    );
    // With less to spare b comes at once, and has its fourth block when a needs a third.
    check(
        "pool 8x4 budget 16 spare 0 | a=8+3 b=16+2 | step: a+8 b+8 [6] | step: a+1 b+8 [7] \
         | step: a+1 a. [0] | step: b+1 b. [0]",
    );
}

#[test]
fn who_can_never_fit_is_refused() {
    check("pool 4x4 budget 16 | a=8+5 b=8+4 | step: b+8 a? [2]");
    check("pool 9x4 budget 16 context 8 | a=8+1 b=7+9 c=8+0 | step: b+7 c+8 a? b. c. [0]");
}

#[test]
fn a_client_that_leaves_frees_its_blocks_within_a_step() {
    check(
        "pool 8x4 budget 16 | a=8+9 b=16+4 | step: a+8 [2] | -a | step: b+16 [4] | step: b+1 [5] | -b \
         | step: [0]",
    );
    check("pool 8x4 budget 16 | a=8+9 b=16+4 c=1+1 | step: a+8 [2] | -b | step: a+1 c+1 c. [3]");
}

#[test]
fn the_last_in_rank_gives_way_and_comes_again() {
    // Six blocks of two: at five tokens each they are full, and at seven b must go.
    let script = "pool 7x2 budget 16 spare 0 | a=4+6 b=4+6 | step: a+4 b+4 [4] | step: a+1 b+1 [6] \
         | step: a+1 b+1 [6] | step: a+1 [4] | step: a+1 [4] | step: a+1 a. [0] | step: b+5 [4] \
         | step: b+1 [4] | step: b+1 b. [0]";
    check(script); // and finds what is left of its blocks
    check(&script.replace("spare 0", "spare 0 cache off").replace("b+5", "b+7"));
}

#[test]
fn a_prompt_is_scored_once() {
    // With seven blocks all but the last of b's are still there when it comes again.
    let script = "pool 8x2 budget 16 spare 0 | a=4+6 b=4+6 | step: a+4 b+4 [4] | step: a+1 b+1 [6] \
         | step: a+1 b+1 [6] | step: a+1 [4] | step: a+1 [4] | step: a+1 a. [0] | step: b+3 [4] \
         | step: b+1 [4] | step: b+1 b. [0]";
    check(&script.replace("b=4+6", "b=4+6,s"));
    check(script);
}

#[test]
fn lower_priorities_run_earlier() {
    check(
        "pool 33x4 budget 16 rows 1 | a=1+2 b=2+1,p1 c=2+1,p-1 d=2+1 | step: c+2 c. [0] \
         | step: a+1 [1] | step: a+1 a. [0] | step: d+2 d. [0] | step: b+2 b. [0]",
    );
    // Who runs is not sent away for it, but reads and gives way in that order.
    check(
        "pool 33x4 budget 8 | a=9+1 | step: a+8 [3] | b=9+1,p-1 | step: b+7 a+1 a. [3] \
         | step: b+2 b. [0]",
    );
    check(
        "pool 7x2 budget 16 spare 0 | a=4+4 b=4+4,p-1 | step: b+4 a+4 [4] | step: b+1 a+1 [6] \
         | step: b+1 a+1 [6] | step: b+1 b. [0] | step: a+3 a. [0]",
    );
}

#[test]
fn who_was_overtaken_too_often_goes_first() {
    let script = "pool 33x4 budget 16 rows 1 | a=1+1,p9 b=1+1 c=1+1 d=1+1,p-1 e=1+1 | step: d+1 d. [0] \
         | step: b+1 b. [0] | step: c+1 c. [0] | step: e+1 e. [0] | step: a+1 a. [0]";
    check(script);
    let in_turn = "step: c+1 c. [0] | step: e+1 e. [0] | step: a+1 a. [0]";
    let promoted = "step: a+1 a. [0] | step: c+1 c. [0] | step: e+1 e. [0]";
    check(&script.replace("rows 1", "rows 1 overtaken 2").replace(in_turn, promoted));
}

#[test]
fn who_begins_alike_waits_for_the_prefix() {
    check(
        "pool 33x4 budget 16 | a=10+2 b=11+2,@a9 c=3+1 | step: a+10 c+3 c. [3] \
         | step: a+1 b+3 a. b<8 [3] | step: b+1 b. [0]",
    );
    check("pool 33x4 budget 16 cache off | a=6+1 b=6+1,@a5 | step: a+6 b+6 a. b. [0]");
    // In time for whole blocks only.
    check("pool 33x4 budget 16 | a=7+1 b=7+1,@a3 | step: a+7 b+7 a. b. [0]");
    check(
        "pool 33x4 budget 8 | a=20+1 b=13+1,@a12 | step: a+8 [5] | step: a+8 [5] \
         | step: a+4 b+1 a. b<12 b. [0]",
    );
    // Under another salt nothing is awaited or found.
    check(
        "pool 33x4 budget 32 | a=9+1 b=9+1,@a9,k1 | step: a+9 a+9 a. b. [0] | c=9+1,@a9 d=9+1,@a9,k2 \
         | step: a+1 a+9 c<8 c. d. [0]",
    );
    // Who awaited someone that leaves computes it itself.
    check("pool 33x4 budget 8 | a=20+1 b=13+1,@a12 | step: a+8 [5] | -a | step: b+5 b<8 b. [0]");
}

#[test]
fn choices_share_their_prompt() {
    check(
        "pool 33x4 budget 16 | a=9+3,n3 | step: a+9 [5] | step: a+1 a+1 a+1 [5] \
         | step: a+1 a+1 a+1 a. a. a. [0]",
    );
    // Rows for two: the third choice comes back to the prompt's last token, and a fourth with it.
    check(
        "pool 33x4 budget 16 rows 2 | a=9+3,n3 | step: a+9 [4] | step: a+1 a+1 [4] \
         | step: a+1 a+1 a. a. [0] | step: a+1 [3] | step: a+1 [3] | step: a+1 a. [0]",
    );
    check(
        "pool 33x4 budget 16 rows 2 | a=9+2,n4 | step: a+9 [4] | step: a+1 a+1 a. a. [0] \
         | step: a+1 [4] | step: a+1 a+1 a. a. [0]",
    );
    // Five blocks: two of the prompt and one for each of three, not of four.
    check(
        "pool 6x4 budget 16 | a=9+3,n4 | step: a+9 [5] | step: a+1 a+1 a+1 [5] \
         | step: a+1 a+1 a+1 a. a. a. [0] | step: a+2 [3] | step: a+1 a. [0]",
    );
    check("pool 33x4 budget 16 | a=8+2,n2 | step: a+8 [2] | step: a+1 a+1 a. a. [0]");
    check("pool 33x4 budget 16 | a=9+1,n3 b=5+0,n2 | step: a+9 b+5 a. a. a. b. b. [0]");
}

#[test]
fn what_is_too_late_ends_wherever_it_is() {
    check(
        "pool 33x4 budget 16 rows 1 | a=4+9,d5 b=4+9,d4 c=4+2 | step: a+4 [1] | time 4 \
         | step: a+1 b# [2] | time 5 | step: c+4 a# [1] | step: c+1 c. [0]",
    );
    check("pool 33x4 budget 16 | a=4+9,d0 b=4+1 | step: b+4 a# b. [0]");
}

#[test]
fn scored_prompts_are_cut_by_the_outputs_that_fit() {
    check(
        "pool 33x4 budget 16 outputs 4 | a=10+2,s | step: a+4 [3] | step: a+4 [3] | step: a+2 [3] \
         | step: a+1 a. [0]",
    );
    // The last token of a prompt that is only scored asks for nothing.
    check("pool 33x4 budget 16 outputs 4 | a=5+0,s | step: a+5 a. [0]");
    check(
        "pool 33x4 budget 16 outputs 2 | a=6+1,s b=3+1 | step: a+1 b+3 b. [2] | step: a+2 [2] \
         | step: a+2 [2] | step: a+1 a. [0]",
    );
    // It needs its logits, cached or not.
    check(
        "pool 33x4 budget 40 | a=9+1 b=10+1,s,@a9 | step: a+9 a+10 a. b. [0] \
         | c=11+1,s,@a9 d=12+1,@a9 | step: a+11 a+4 c. d<8 d. [0]",
    );
}

#[test]
fn after_a_fault_each_is_tried_alone() {
    check_with(
        "pool 8x4 budget 16 | a=8+9 b=16+4 | step: a+8 [2] | step: a! [0] | step: b+16 [4]",
        |runner| runner.fail_at(1),
    );
    let script = "pool 33x4 budget 16 | a=4+9 b=5+9 c=6+9 | step: a+4 b+5 c+6 [5] | d=1+1 | step: [7] \
         | step: a+1 [7] | step: b+1 [7] | step: c+1 [7] | step: d+1 d. [6]";
    check_with(script, |runner| runner.fail_at(1));
    // b is at fault, wherever it is computed.
    let b_fails = "step: b! [5] | step: c+1 [5] | step: d+1 d. [4]";
    let script = script.replace("step: b+1 [7] | step: c+1 [7] | step: d+1 d. [6]", b_fails);
    check_with(&script, |runner| {
        let poisoned = |row: &Row| row.tokens[0] == 1 && row.tokens.len() > 5;
        runner.trouble(move |_, rows| rows.iter().any(poisoned).then_some(Trouble::Fault))
    });
    check_with(
        "pool 33x4 budget 16 | a=5+3,n3 | step: a+5 [4] | step: [4] | step: a+1 [4] | step: a+1 [4] \
         | step: a+1 [4] | step: a+1 a+1 a+1 a. a. a. [0]",
        |runner| runner.fail_at(1),
    );
}

/// A step is told once the next is launched: the first tells nothing, and one is launched too many for an answer that
/// stops, but none for one whose length ends it.
#[test]
fn a_step_is_planned_before_the_last_is_known() {
    let ahead = |script| check_with(script, FakeRunner::ahead);
    ahead("pool 17x4 budget 16 | a=3+3 | step: a+3 [1] | step: a+1 [1] | step: a+1 [2] | step: a. [0]");
    ahead(
        "pool 17x4 budget 16 | a=3+1 b=5+2 | step: a+3 b+5 [3] | step: b+1 a. [2] | c=4+2 | step: c+4 b. [1] \
         | step: c+1 [2] | step: c. [0]",
    );
    // An answer that is all drawn takes nothing from prompts.
    ahead("pool 17x4 budget 16 share 3 | a=3+1 | step: a+3 [1] | b=8+1 | step: b+8 a. [2] | step: b. [0]");
    // Whoever must give way does when all that is under way is known.
    ahead(
        "pool 5x4 budget 16 spare 0 | a=7+9 b=7+9 | step: a+7 b+7 [4] | step: a+1 b+1 [4] | step: [4] | step: a+1 [3]",
    );
}
