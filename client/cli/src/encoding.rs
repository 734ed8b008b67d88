//! Bytes as text and back: hexadecimal and base64 (RFC 4648, padded), for formats and JSON.

const HEX: &[u8; 16] = b"0123456789abcdef";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends two lower-case digits for each byte.
pub(crate) fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// Appends four characters for each three bytes, padded with `=`.
pub(crate) fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|at| chunk.get(at).copied().unwrap_or(0));
        let group = u32::from_be_bytes([0, a, b, c]);
        for place in 0..4 {
            out.push(if place <= chunk.len() {
                BASE64[(group >> (18 - 6 * place) & 63) as usize]
            } else {
                b'='
            });
        }
    }
}

/// The bytes of base64 text, with or without padding; `None` when it is not base64.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if digits.len() % 4 == 1 || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.chunks(4) {
        let mut group: u32 = 0;
        for place in 0..4 {
            let digit = match chunk.get(place) {
                Some(c) => BASE64.iter().position(|digit| digit == c)?,
                None => 0,
            };
            group = group << 6 | u32::try_from(digit).ok()?;
        }
        bytes.extend_from_slice(&group.to_be_bytes()[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_vectors_of_its_standard_and_comes_back() {
        // RFC 4648, section 10.
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            base64(plain.as_bytes(), &mut out);
            assert_eq!(out, encoded.as_bytes());
            assert_eq!(from_base64(encoded).as_deref(), Some(plain.as_bytes()));
        }
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        base64(&all, &mut out);
        assert_eq!(from_base64(std::str::from_utf8(&out).unwrap()), Some(all));
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for wrong in ["A", "Zm9v!", "Zg===", "Zm 9v", "=Zg"] {
            assert_eq!(from_base64(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn hexadecimal_has_two_digits_for_each_byte() {
        let mut out = Vec::new();
        hex(&[0, 0x1f, 0xff], &mut out);
        assert_eq!(out, b"001fff");
    }
}
