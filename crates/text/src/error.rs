/// What can go wrong between text and ids. Each message says what to change.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer's file cannot be used.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// The tokenizer's settings cannot be used.
    #[error("tokenizer_config.json: {0}")]
    Config(String),
    /// The tokenizer refused a text.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// The chat template is no template.
    #[error("the chat template cannot be read: {0}")]
    Template(String),
    /// The template called `raise_exception`: its own words to the client.
    #[error("{0}")]
    Raised(String),
    /// The template failed on this conversation.
    #[error("the chat template cannot render this conversation: {0}")]
    Render(String),
    /// The last message is to be gone on with, and the template does not show where its text ends.
    #[error(
        "the chat template does not write the last message's text as it is, so that it cannot be continued."
    )]
    NotContinued,
    /// A template argument would replace what the server provides.
    #[error("`chat_template_kwargs` cannot replace `{0}`. Use another name.")]
    Reserved(String),
    /// The template works without end, or for longer than any conversation needs.
    #[error("the chat template takes too many steps on this conversation. Send fewer or shorter messages.")]
    TooManySteps,
    /// The rendered conversation has more tokens than were allowed, by its length alone.
    #[error("the rendered conversation has at least {at_least} tokens. Send fewer or shorter messages.")]
    TooManyTokens {
        /// No text of this length has fewer.
        at_least: usize,
    },
    /// The rendered conversation is larger than any context.
    #[error("the rendered conversation is longer than {limit} bytes. Send fewer or shorter messages.")]
    TooLong {
        /// In bytes.
        limit: usize,
    },
}
