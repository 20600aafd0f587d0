//! How each family of models writes tool calls and reasoning: read from a stream of text, and as a grammar.
