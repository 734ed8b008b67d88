//! Backslash escapes in delimiters and formats: `\n`, `\t`, `\r`, `\0`, `\\` and `\xNN`.

use std::{iter::Peekable, str::Chars};

/// The bytes that `text` stands for.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\\' {
            bytes.push(escape(&mut chars)?);
        } else {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Ok(bytes)
}

/// The byte of one escape whose backslash has been read.
pub(crate) fn escape(chars: &mut Peekable<Chars<'_>>) -> Result<u8, String> {
    Ok(match chars.next() {
        Some('n') => b'\n',
        Some('t') => b'\t',
        Some('r') => b'\r',
        Some('0') => 0,
        Some('\\') => b'\\',
        Some('x') => {
            let mut digit = || chars.next_if(char::is_ascii_hexdigit).and_then(|c| c.to_digit(16));
            match (digit(), digit()) {
                (Some(high), Some(low)) => u8::try_from(high * 16 + low).expect("two hex digits"),
                _ => return Err("`\\x` takes two hexadecimal digits, like \\x1f".to_owned()),
            }
        }
        Some(other) => {
            return Err(format!("`\\{other}` is no escape; there are \\n \\t \\r \\0 \\\\ \\xNN"));
        }
        None => return Err("a backslash at the very end; write \\\\ for a backslash".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_bytes_and_the_rest_stays() {
        assert_eq!(unescape(r"a\tb\n\\\x00\xff\0é").unwrap(), b"a\tb\n\\\x00\xff\x00\xc3\xa9");
    }

    #[test]
    fn wrong_escapes_are_named() {
        for (wrong, says) in
            [(r"\q", r"\q"), (r"\x1", "two hex"), (r"\xgg", "two hex"), ("\\", "end")]
        {
            let error = unescape(wrong).expect_err(wrong);
            assert!(error.contains(says), "{error}");
        }
    }
}
