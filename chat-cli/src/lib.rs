//! chat-cli
