//! The text arguments of protocol 0: numbers in decimal, strings as Python 2 printed them.

use std::borrow::Cow;

use super::Value;

/// Python refuses longer decimals too: conversion takes quadratic time.
const MAX_DIGITS: usize = 4300;

/// A line's characters without surrounding blanks, if it is ASCII.
fn ascii(line: &[u8]) -> Option<&str> {
    std::str::from_utf8(line).ok().filter(|text| text.is_ascii()).map(str::trim)
}

fn shown(line: &[u8]) -> String {
    let start = String::from_utf8_lossy(&line[..line.len().min(40)]);
    format!("{start:?}{}", if line.len() > 40 { " ..." } else { "" })
}

/// `INT`: a decimal, or a Boolean written `00` or `01`.
pub(super) fn int(line: &[u8]) -> Result<Value<'static>, String> {
    match line {
        b"00" => Ok(Value::Bool(false)),
        b"01" => Ok(Value::Bool(true)),
        _ => long(line),
    }
}

/// `LONG`: a decimal of any length, with or without Python 2's `L`.
pub(super) fn long(line: &[u8]) -> Result<Value<'static>, String> {
    let bad = || format!("{} is no decimal number", shown(line));
    let text = ascii(line).ok_or_else(bad)?;
    let text = text.strip_suffix('L').unwrap_or(text);
    if let Ok(value) = text.parse::<i64>() {
        return Ok(Value::Int(value));
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    if digits.len() > MAX_DIGITS {
        return Err(format!("a number of {} digits; at most {MAX_DIGITS} are read", digits.len()));
    }
    Ok(bytes_of_decimal(negative, digits))
}

/// Little-endian two's complement, which is what the binary opcodes hold.
fn bytes_of_decimal(negative: bool, digits: &str) -> Value<'static> {
    let mut limbs: Vec<u32> = Vec::new();
    for digit in digits.bytes() {
        let mut carry = u64::from(digit - b'0');
        for limb in &mut limbs {
            let wide = u64::from(*limb) * 10 + carry;
            *limb = wide as u32;
            carry = wide >> 32;
        }
        if carry > 0 {
            limbs.push(carry as u32);
        }
    }
    limbs.push(0);
    if negative {
        let mut carry = true;
        for limb in &mut limbs {
            let (value, overflow) = (!*limb).overflowing_add(u32::from(carry));
            *limb = value;
            carry = overflow;
        }
    }
    integer(Cow::Owned(limbs.iter().flat_map(|limb| limb.to_le_bytes()).collect()))
}

/// The number whose little-endian two's complement is `bytes`.
pub(super) fn integer(bytes: Cow<'_, [u8]>) -> Value<'_> {
    let fill = if bytes.last().is_some_and(|&top| top >= 0x80) { 0xff } else { 0 };
    let mut low = [fill; 8];
    let (head, rest) = bytes.split_at(bytes.len().min(8));
    low[..head.len()].copy_from_slice(head);
    let value = i64::from_le_bytes(low);
    let fits = rest.iter().all(|&byte| byte == fill) && (rest.is_empty() || (value < 0) == (fill == 0xff));
    if fits { Value::Int(value) } else { Value::BigInt(bytes) }
}

/// `FLOAT`: what Python's `repr` writes, `inf` and `nan` included.
pub(super) fn float(line: &[u8]) -> Result<f64, String> {
    ascii(line).and_then(|text| text.parse().ok()).ok_or_else(|| format!("{} is no number", shown(line)))
}

/// `GET` and `PUT`: a memo index.
pub(super) fn index(line: &[u8]) -> Result<u64, String> {
    ascii(line).and_then(|text| text.parse().ok()).ok_or_else(|| format!("{} is no memo index", shown(line)))
}

/// `STRING`: a quoted string as Python 2's `repr` wrote it.
pub(super) fn quoted(line: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let line = line.trim_ascii_end();
    let inner = match line {
        [open @ (b'\'' | b'"'), inner @ .., close] if open == close => inner,
        _ => return Err(format!("{} is not a quoted string", shown(line))),
    };
    if !inner.contains(&b'\\') {
        return Ok(Cow::Borrowed(inner));
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some((&escape, after)) = rest.split_first() else {
            return Err("a backslash ends the string".into());
        };
        rest = after;
        match escape {
            b'\n' => {}
            b'\\' | b'\'' | b'"' => out.push(escape),
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'x' => {
                let value = hex(rest, 2).ok_or("an \\x escape without two hexadecimal digits")?;
                out.push(value as u8);
                rest = &rest[2..];
            }
            b'0'..=b'7' => {
                let more = rest.iter().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let value = rest[..more]
                    .iter()
                    .fold(u32::from(escape - b'0'), |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push(value as u8);
                rest = &rest[more..];
            }
            // An escape that Python does not know stands for itself.
            _ => out.extend([b'\\', escape]),
        }
    }
    Ok(Cow::Owned(out))
}

/// `UNICODE`: LATIN-1 with escapes of four (`\u`) and eight (`\U`) hexadecimal digits. A lone surrogate becomes U+FFFD.
pub(super) fn raw_unicode(line: &[u8]) -> Result<Cow<'_, str>, String> {
    if line.is_ascii() && !line.contains(&b'\\') {
        return Ok(String::from_utf8_lossy(line));
    }
    let mut units: Vec<u16> = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = match (byte, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            // Python writes a backslash itself as \u005c; any other one stands for itself.
            _ => {
                units.push(u16::from(byte));
                rest = after;
                continue;
            }
        };
        let code = hex(&after[1..], digits).ok_or("a \\u escape without its hexadecimal digits")?;
        match (u16::try_from(code), char::from_u32(code)) {
            (Ok(unit), _) => units.push(unit),
            (_, Some(wide)) => units.extend_from_slice(wide.encode_utf16(&mut [0; 2])),
            _ => return Err(format!("\\U{code:08x} is no character")),
        }
        rest = &after[1 + digits..];
    }
    Ok(Cow::Owned(String::from_utf16_lossy(&units)))
}

fn hex(digits: &[u8], count: usize) -> Option<u32> {
    digits
        .get(..count)?
        .iter()
        .try_fold(0u32, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_of_any_length() {
        assert_eq!(int(b"01"), Ok(Value::Bool(true)));
        assert_eq!(int(b"1"), Ok(Value::Int(1)));
        assert_eq!(long(b"-9223372036854775808L"), Ok(Value::Int(i64::MIN)));
        // int.to_bytes(9, "little", signed=True) of ±2**64 and of 2**63.
        assert_eq!(
            long(b"18446744073709551616L"),
            Ok(Value::BigInt(Cow::Owned(vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])))
        );
        assert_eq!(
            long(b"-18446744073709551616"),
            Ok(Value::BigInt(Cow::Owned(vec![
                0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255
            ])))
        );
        let Value::BigInt(bytes) = long(b"9223372036854775808").unwrap() else {
            panic!("it does not fit i64")
        };
        assert_eq!(bytes[..9], [0, 0, 0, 0, 0, 0, 0, 128, 0]);
        for bad in [&b""[..], b"-", b"1.5", b"0x10", b"L", b"1\xff"] {
            assert!(long(bad).is_err(), "{bad:?}");
        }
        assert!(long(&[b'7'; MAX_DIGITS]).is_ok());
        assert!(long(&[b'7'; MAX_DIGITS + 1]).is_err());
    }

    #[test]
    fn twos_complement() {
        assert_eq!(integer(Cow::Borrowed(&[])), Value::Int(0));
        assert_eq!(integer(Cow::Borrowed(&[0xff])), Value::Int(-1));
        assert_eq!(integer(Cow::Borrowed(&[0xff, 0])), Value::Int(255));
        assert_eq!(integer(Cow::Borrowed(&[0, 0, 0, 0, 0, 0, 0, 128, 255])), Value::Int(i64::MIN));
        assert!(matches!(integer(Cow::Borrowed(&[0, 0, 0, 0, 0, 0, 0, 128, 0])), Value::BigInt(_)));
        assert!(matches!(integer(Cow::Borrowed(&[0, 0, 0, 0, 0, 0, 0, 0, 255])), Value::BigInt(_)));
    }

    #[test]
    fn quoted_strings_as_python_2_wrote_them() {
        assert_eq!(quoted(b"'plain'").unwrap(), &b"plain"[..]);
        assert_eq!(quoted(b"\"it's\" ").unwrap(), &b"it's"[..]);
        assert_eq!(quoted(br"'\x00\xffa\n\t\\\'\101\7z\q'").unwrap(), &b"\0\xffa\n\t\\'A\x07z\\q"[..]);
        for bad in [&b""[..], b"'", b"'a\"", b"a", br"'\x0'", br"'\'"] {
            assert!(quoted(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unicode_escapes() {
        assert_eq!(raw_unicode(b"a").unwrap(), "a");
        assert_eq!(raw_unicode(b"\xe9\\u20ac\\U0001f600\\u005c\\x").unwrap(), "\u{e9}\u{20ac}\u{1f600}\\\\x");
        assert_eq!(raw_unicode(b"\\ud83d\\ude00").unwrap(), "\u{1f600}");
        assert_eq!(raw_unicode(b"\\ud83d").unwrap(), "\u{fffd}");
        for bad in [&b"\\u12"[..], b"\\uzzzz", b"\\U00110000", b"\\u"] {
            assert!(raw_unicode(bad).is_err(), "{bad:?}");
        }
    }
}
