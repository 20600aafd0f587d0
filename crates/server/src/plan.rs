//! What the engine is asked to do for one API request.

use std::cmp::max;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use engine::grammar::Constraint;
use engine::request::{Request, Sampling};
use openai::{Error, Generation, Truncation};

use crate::app::ServedModel;
use crate::auth::Caller;
use crate::decode::DecodeOptions;
use crate::restrict::Restriction;
use crate::speech::Speech;

/// A `logit_bias` that bans a token.
const BAN: f32 = -100.0;
/// Below it a temperature is greedy: dividing logits by it would overflow.
const TEMPERATURE_MIN: f32 = 1e-5;
/// Log probabilities of prompt tokens in one answer: some 100 bytes each, as JSON.
const PROMPT_SCORES_MAX: usize = 1 << 20;

/// Prompts as ids, and how to go on from each. Lengths are checked.
pub(crate) struct Plan {
    pub(crate) prompts: Vec<Arc<Vec<u32>>>,
    /// Choices that are told of each prompt.
    pub(crate) n: usize,
    /// Choices that are drawn from each, at least `n`.
    pub(crate) best_of: usize,
    /// As the metrics count it: the longest answer that was allowed.
    pub(crate) max_tokens: usize,
    budgets: Vec<usize>,
    template: Request,
    decode: DecodeOptions,
    /// The prompt's tokens are told.
    tells_prompt: bool,
}

/// What chat and completions say each in their own way.
pub(crate) struct Asked {
    /// `messages` or `prompt`, for errors.
    pub(crate) param: &'static str,
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Tokens of the prompt that the model drew itself, where that is known and the prompt is one.
    pub(crate) drawn: Vec<Range<usize>>,
    pub(crate) best_of: usize,
    pub(crate) logprobs: Option<usize>,
    pub(crate) constraint: Option<Constraint>,
    pub(crate) speech: Option<Arc<Speech>>,
    pub(crate) echo: bool,
    /// `max_tokens` may be cut to what is left of the context.
    pub(crate) may_cut: bool,
    pub(crate) caller: Caller,
}

impl Plan {
    pub(crate) fn new(model: &ServedModel, generation: &Generation, mut asked: Asked) -> Result<Self, Error> {
        truncate(model.context_len, generation, &mut asked);
        let budget = |prompt: &Vec<u32>| budget(model.context_len, generation, &asked, prompt.len());
        let budgets = asked.prompts.iter().map(budget).collect::<Result<Vec<_>, _>>()?;
        let eos_ids = if generation.ignore_eos { Vec::new() } else { model.eos_ids.clone() };
        let mut stop_ids = eos_ids.clone();
        stop_ids.extend(&generation.stop_token_ids);
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let decode = DecodeOptions {
            tokenizer: model.tokenizer.clone(),
            skip_special_tokens: generation.skip_special_tokens,
            stop: generation.stop.clone(),
            eos_ids,
            stop_token_ids: generation.stop_token_ids.clone(),
            include_stop: generation.include_stop_str_in_output,
            min_tokens: generation.min_tokens,
            prompt: None,
            echo: asked.echo,
            speech: asked.speech.clone(),
        };
        check_prompts(model, &asked)?;
        let prompt_logprobs = max(generation.prompt_logprobs, asked.logprobs.filter(|_| asked.echo));
        check_scores(generation, &asked, prompt_logprobs)?;
        let restriction = Restriction::of(model, generation)?;
        check_drawable(model, generation, restriction.as_ref())?;
        let template = Request {
            drawn: asked.drawn,
            n: asked.best_of,
            min_new_tokens: generation.min_tokens,
            stop_ids,
            sampling: sampling(model, generation),
            constraint: match restriction {
                Some(restriction) => Some(restriction.with(asked.constraint)),
                None => asked.constraint,
            },
            // The best are told by them.
            logprobs: asked.logprobs.or((asked.best_of > generation.n).then_some(0)),
            prompt_logprobs,
            priority: generation.priority,
            cache_salt: asked.caller.cache_salt(generation.cache_salt.as_deref()),
            ..Request::default()
        };
        Ok(Self {
            n: generation.n,
            best_of: asked.best_of,
            max_tokens: budgets.iter().copied().max().unwrap_or(0),
            budgets,
            template,
            decode,
            tells_prompt: asked.echo || generation.prompt_logprobs.is_some(),
            prompts: asked.prompts.into_iter().map(Arc::new).collect(),
        })
    }

    /// A request for each prompt, and how its choices are decoded.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (Request, DecodeOptions)> + '_ {
        self.prompts.iter().zip(&self.budgets).map(|(prompt, &max_new_tokens)| {
            let request = Request { prompt: prompt.to_vec(), max_new_tokens, ..self.template.clone() };
            let prompt = self.tells_prompt.then(|| Arc::clone(prompt));
            (request, DecodeOptions { prompt, ..self.decode.clone() })
        })
    }
}

/// The longest prompt that can be served: one that is surely longer need not be counted.
pub(crate) fn prompt_len_max(model: &ServedModel, generation: &Generation) -> usize {
    if generation.truncate_prompt_tokens.is_some() { usize::MAX } else { model.context_len }
}

/// Keeps the end of each prompt, as much as the client wants.
fn truncate(context_len: usize, generation: &Generation, asked: &mut Asked) {
    let kept = match generation.truncate_prompt_tokens {
        None => return,
        Some(Truncation::Last(most)) => most,
        Some(Truncation::Fit) => {
            let answer = generation.max_tokens.unwrap_or(1).max(generation.min_tokens);
            context_len.saturating_sub(answer).max(1)
        }
    };
    for prompt in asked.prompts.iter_mut().filter(|prompt| prompt.len() > kept) {
        prompt.drain(..prompt.len() - kept);
        // Past answers were drawn after other tokens than they follow now.
        asked.drawn.clear();
    }
}

/// Tokens that may be generated after a prompt of `prompt_len`.
fn budget(
    context_len: usize,
    generation: &Generation,
    asked: &Asked,
    prompt_len: usize,
) -> Result<usize, Error> {
    if prompt_len == 0 {
        return Err(Error::value(
            asked.param,
            format!("`{}` has no tokens; it needs at least one.", asked.param),
        ));
    }
    let requested = generation.max_tokens;
    let too_long =
        |answer_len: usize| Error::context_length(asked.param, context_len, prompt_len, answer_len);
    // A prompt that is only scored may fill the context.
    if prompt_len + requested.map_or(1, |most| most.min(1)) > context_len {
        return Err(too_long(requested.unwrap_or(1)));
    }
    let left = context_len - prompt_len;
    let budget = match requested {
        Some(most) if most <= left => most,
        Some(_) if asked.may_cut => left,
        None => left,
        Some(most) => return Err(too_long(most)),
    };
    if generation.min_tokens > budget {
        return Err(Error::value(
            "min_tokens",
            format!(
                "`min_tokens` is {}, but only {budget} tokens are left of the context. Lower it \
                 or shorten the prompt.",
                generation.min_tokens
            ),
        ));
    }
    Ok(budget)
}

/// Several prompts enter the queue together: more than it holds would hear "try again" for ever.
fn check_prompts(model: &ServedModel, asked: &Asked) -> Result<(), Error> {
    let (param, n) = (asked.param, asked.prompts.len());
    let n_tokens: usize = asked.prompts.iter().map(Vec::len).sum();
    let (has, option, holds) = match n {
        1 => return Ok(()), // one that is too long for the queue waits alone
        _ if n > model.max_waiting => (format!("{n} prompts"), "--max-queue", model.max_waiting),
        _ if n_tokens > model.max_waiting_tokens => {
            (format!("{n_tokens} tokens in {n} prompts"), "--max-queue-tokens", model.max_waiting_tokens)
        }
        _ => return Ok(()),
    };
    let message =
        format!("`{param}` has {has}; this server's queue ({option}) holds {holds}. Send fewer at once.");
    Err(Error::value(param, message))
}

/// What is told of prompt tokens is bounded before any of it is computed. `top`: so many beside each.
fn check_scores(generation: &Generation, asked: &Asked, top: Option<usize>) -> Result<(), Error> {
    let Some(top) = top else { return Ok(()) };
    let n_tokens: usize = asked.prompts.iter().map(Vec::len).sum();
    let all = n_tokens.saturating_mul(top + 1).saturating_mul(asked.best_of);
    if all <= PROMPT_SCORES_MAX {
        return Ok(());
    }
    let field = if generation.prompt_logprobs == Some(top) { "prompt_logprobs" } else { "logprobs" };
    let message = format!(
        "`{field}` is {top}: for {n_tokens} prompt tokens and {} choices of each prompt these are {all} log \
         probabilities; at most {PROMPT_SCORES_MAX} are allowed. Lower it, or send fewer tokens at once.",
        asked.best_of
    );
    Err(Error::value(field, message))
}

/// A first token must be left to draw.
fn check_drawable(
    model: &ServedModel,
    generation: &Generation,
    restriction: Option<&Restriction>,
) -> Result<(), Error> {
    let ends = model.eos_ids.iter().filter(|_| !generation.ignore_eos).chain(&generation.stop_token_ids);
    let delayed = ends.filter(|_| generation.min_tokens > 0);
    let banned = generation.logit_bias.iter().filter(|(_, bias)| *bias <= BAN).map(|(id, _)| id);
    let excluded: HashSet<&u32> = banned.chain(delayed).collect();
    let allows = |id: &u32| restriction.is_none_or(|restriction| restriction.allows(*id));
    if (0..model.drawable() as u32).any(|id| allows(&id) && !excluded.contains(&id)) {
        return Ok(());
    }
    let field = match generation {
        Generation { allowed_token_ids: Some(_), .. } => "allowed_token_ids",
        Generation { bad_words, .. } if !bad_words.is_empty() => "bad_words",
        _ => "logit_bias",
    };
    let message = format!(
        "`{field}` leaves no token to begin the answer with: what `logit_bias`, `bad_words` and \
         `allowed_token_ids` exclude adds up, and before `min_tokens` none that ends it counts. Exclude fewer tokens."
    );
    Err(Error::value(field, message))
}

fn sampling(model: &ServedModel, generation: &Generation) -> Sampling {
    let defaults = &model.defaults;
    let temperature = generation.temperature.or(defaults.temperature).unwrap_or(1.0);
    let top_k = generation.top_k.or(defaults.top_k).unwrap_or(0);
    Sampling {
        temperature: if temperature < TEMPERATURE_MIN { 0.0 } else { temperature },
        top_p: generation.top_p.or(defaults.top_p).unwrap_or(1.0),
        // More than the vocabulary has is no limit.
        top_k: if top_k >= model.vocab_size { 0 } else { top_k },
        min_p: generation.min_p,
        presence_penalty: generation.presence_penalty,
        frequency_penalty: generation.frequency_penalty,
        repetition_penalty: generation.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
        logit_bias: generation.logit_bias.clone(),
        seed: generation.seed.map(i64::cast_unsigned),
    }
}
