//! List files: one image a line, `path[,label]`; row order is the file's order.
//!
//! Fields are separated by a comma (in `.tsv` files by a tab) and may be quoted as in CSV, with `""` for a quote.
//! Empty lines and lines that begin with `#` are skipped; a first line such as `path,label` is a header. Relative
//! paths start at the list's folder, absolute ones are taken as they are; a path that occurs twice has two rows.
//! Labels are names, or integers if all of them are: either way classes are ordered and matched by what is written.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::ImageSource;
use super::dataset::{Dataset, Splits};
use super::detect::DataFormat;
use super::files::FileList;
use crate::error::{Error, Result};

/// Whether `path` is named like a list: `.txt`, `.csv` or `.tsv`.
pub(super) fn is_named_so(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["txt", "csv", "tsv"].iter().any(|&known| extension == known)
}

/// Opens the list at `path`.
///
/// # Errors
/// If it cannot be read, names no image, or a line of it is wrong; the error has the line's number.
pub(super) fn open(path: &Path) -> Result<Splits> {
    let io = |source| Error::io(path, "read the list", source);
    // A pipe has no end that we know of, and could not be read again when the run goes on.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::format(path, "a regular file", "a pipe or a device"));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    let separator =
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) { b'\t' } else { b',' };
    let train = parse(&bytes, separator, path)?;
    Ok(Splits { train, test: None, format: DataFormat::List, root: path.to_owned(), notes: Vec::new() })
}

fn parse(bytes: &[u8], separator: u8, path: &Path) -> Result<Dataset> {
    let mut files = FileList::new(path.parent().unwrap_or(Path::new("")));
    let mut labels: Vec<&str> = Vec::new();
    let mut owned = Vec::new();
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut first = true;
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        let fail = |expected: &str, found: String| {
            Err(Error::format(format!("{}:{}", path.display(), i + 1), expected, found))
        };
        let fields = match split(line, separator) {
            Ok(fields) => fields,
            Err(found) => return fail("a path and perhaps a label", found.into()),
        };
        if std::mem::take(&mut first) && is_header(&fields) {
            continue;
        }
        if fields.len() > 2 {
            let found = format!("{} fields; quote a path that holds a separator", fields.len());
            return fail("a path and perhaps a label", found);
        }
        if fields[0].is_empty() || fields[0].contains(&0) {
            return fail("a path", format!("{:?}", String::from_utf8_lossy(&fields[0])));
        }
        files.push(&fields[0])?;
        if let Some(label) = fields.into_iter().nth(1) {
            match String::from_utf8(label.into_owned()) {
                Ok(label) if !label.trim().is_empty() => owned.push(label.trim().to_owned()),
                Ok(_) => return fail("a label after the separator", "nothing".into()),
                Err(error) => return fail("a label in UTF-8", format!("{:?}", error.into_bytes())),
            }
        }
        if !owned.is_empty() && owned.len() != files.len() {
            return fail("a label on every line or on none", "some with and some without".into());
        }
    }
    labels.extend(owned.iter().map(String::as_str));
    if files.is_empty() {
        let reason = "the list names no image".into();
        return Err(Error::Data {
            path: path.to_owned(),
            reason,
            hint: Some("a line is path[,label]".into()),
        });
    }
    if labels.is_empty() {
        return Dataset::unlabelled(DataFormat::List, Arc::new(files));
    }
    let classes = classes(&labels);
    let number: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let numbers = labels.iter().map(|label| number[label]).collect();
    Dataset::labelled(DataFormat::List, Arc::new(files), numbers, classes.clone())
}

/// The distinct labels: by value if all are integers written plainly, else by name.
fn classes(labels: &[&str]) -> Vec<String> {
    let distinct: BTreeSet<&str> = labels.iter().copied().collect();
    let plain = |label: &str| label.parse::<i64>().ok().filter(|value| value.to_string() == label);
    let numbers: Option<BTreeSet<i64>> = distinct.iter().map(|label| plain(label)).collect();
    match numbers {
        Some(numbers) => numbers.iter().map(i64::to_string).collect(),
        None => distinct.iter().map(|&label| label.to_owned()).collect(),
    }
}

fn is_header(fields: &[Cow<'_, [u8]>]) -> bool {
    const PATHS: [&str; 6] = ["path", "file", "filename", "file_name", "image", "name"];
    const LABELS: [&str; 4] = ["label", "class", "target", "category"];
    let is = |field: &[u8], words: &[&str]| {
        words.iter().any(|word| field.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    };
    is(&fields[0], &PATHS) && fields[1..].iter().all(|field| is(field, &LABELS))
}

/// The fields of a line; quoted ones without their quotes.
fn split(line: &[u8], separator: u8) -> std::result::Result<Vec<Cow<'_, [u8]>>, &'static str> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let Some(mut quoted) = rest.strip_prefix(b"\"") else {
            match rest.iter().position(|&b| b == separator) {
                Some(end) => {
                    fields.push(rest[..end].into());
                    rest = &rest[end + 1..];
                    continue;
                }
                None => {
                    fields.push(rest.into());
                    return Ok(fields);
                }
            }
        };
        let mut field = Vec::new();
        loop {
            let end =
                quoted.iter().position(|&b| b == b'"').ok_or("a quote that does not end on the line")?;
            field.extend_from_slice(&quoted[..end]);
            quoted = &quoted[end + 1..];
            match quoted.strip_prefix(b"\"") {
                Some(after) => {
                    field.push(b'"');
                    quoted = after;
                }
                None => break,
            }
        }
        fields.push(field.into());
        match quoted.split_first() {
            None => return Ok(fields),
            Some((&b, after)) if b == separator => rest = after,
            Some(_) => return Err("something between a closing quote and the separator"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(text: &[u8]) -> Result<Dataset> {
        parse(text, b',', Path::new("/data/some.csv"))
    }

    fn names(data: &Dataset) -> Vec<String> {
        (0..data.len()).map(|i| data.name(i).into_owned()).collect()
    }

    #[test]
    fn rows_keep_the_order_of_the_file() {
        let data =
            csv(b"\xEF\xBB\xBF# a comment\r\nPath,Label\r\nb.png,dog\r\n\r\na.png,cat\nb.png,dog\n").unwrap();
        assert_eq!(names(&data), ["b.png", "a.png", "b.png"]);
        assert_eq!(data.classes(), ["cat", "dog"]);
        assert_eq!(data.labels().unwrap(), [1, 0, 1]);
    }

    #[test]
    fn integers_are_ordered_by_value_and_need_not_be_contiguous() {
        let data = csv(b"a.png,10\nb.png,9\nc.png,4000000000").unwrap();
        assert_eq!(data.classes(), ["9", "10", "4000000000"]);
        assert_eq!(data.labels().unwrap(), [1, 0, 2]);
        // 07 and 7 are different labels; then they are names.
        assert_eq!(csv(b"a.png,07\nb.png,7").unwrap().classes(), ["07", "7"]);
    }

    #[test]
    fn paths_without_labels_may_hold_anything_but_a_separator() {
        let data =
            csv(b"my photo.png\n\"x, y.png\"\n\"say \"\"hi\"\".png\"\n/abs/z.png\n../up.png\n\xFF.png")
                .unwrap();
        assert!(data.labels().is_none());
        let expected =
            ["my photo.png", "x, y.png", "say \"hi\".png", "/abs/z.png", "../up.png", "\u{FFFD}.png"];
        assert_eq!(names(&data), expected);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, line, words) in [
            (&b"a.png,1\nb.png"[..], 2, "on every line"),
            (b"a.png\nb.png,1", 2, "on every line"),
            (b"a.png,1,2", 1, "3 fields"),
            (b"a.png,", 1, "found nothing"),
            (b"x.png,1\n,1", 2, "a path"),
            (b"\"a.png,1", 1, "does not end"),
            (b"\"a.png\"x,1", 1, "closing quote"),
            (b"a\0.png,1", 1, "a path"),
            (b"a.png,\xFF", 1, "UTF-8"),
        ] {
            let error = csv(text).unwrap_err().to_string();
            let place = format!("/data/some.csv:{line}: ");
            assert!(error.starts_with(&place) && error.contains(words), "{error}");
        }
        for empty in [&b""[..], b"\n\n# nothing\n", b"path,label\n"] {
            assert!(csv(empty).unwrap_err().to_string().contains("names no image"));
        }
    }

    #[test]
    fn tabs_separate_in_tsv() {
        let data = parse(b"a, b.png\tx", b'\t', Path::new("l.tsv")).unwrap();
        assert_eq!((names(&data)[0].as_str(), data.classes()[0].as_str()), ("a, b.png", "x"));
    }
}
