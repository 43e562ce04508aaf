//! xtext, RFC 3461 s. 4.
