//! Tables of embeddings that other tools read: one line or row for each image, with its name, label and numbers.

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// One image's line.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The image's index in its split, which is its bank row.
    pub row: usize,
    /// Its name: a path below the data set's folder, where there is one.
    pub name: &'a str,
    /// Its class, where it has one.
    pub label: Option<&'a str>,
    /// Its numbers `[D]`.
    pub values: &'a [f32],
}

/// Writes lines as CSV (RFC 4180): `row,name,label,e0,e1,...`. Numbers have the digits they need to come back to the
/// same bits.
pub struct CsvTable<W: Write>(BufWriter<W>);

impl<W: Write> CsvTable<W> {
    /// A table of `dim` numbers a line, its header written.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, dim: usize) -> io::Result<Self> {
        let mut out = BufWriter::new(out);
        let columns: Vec<String> = (0..dim).map(|d| format!("e{d}")).collect();
        writeln!(out, "row,name,label,{}", columns.join(","))?;
        Ok(CsvTable(out))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Those of the file.
    pub fn push(&mut self, line: Line<'_>) -> io::Result<()> {
        write!(self.0, "{},{},{}", line.row, quoted(line.name), quoted(line.label.unwrap_or_default()))?;
        for value in line.values {
            write!(self.0, ",{value}")?;
        }
        writeln!(self.0)
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A field of a CSV file.
pub(crate) fn quoted(field: &str) -> Cow<'_, str> {
    if field.contains([',', '"', '\n', '\r']) {
        Cow::Owned(format!("\"{}\"", field.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(field)
    }
}

/// Rows of a Parquet row group: some megabytes of numbers.
const GROUP: usize = 16_384;

/// Writes lines as Parquet: `row` int64, `name` and `label` strings, `embedding` a list of floats.
pub struct ParquetTable<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    rows: Vec<i64>,
    names: Vec<ByteArray>,
    labels: Vec<Option<ByteArray>>,
    values: Vec<f32>,
    dim: usize,
}

impl<W: Write + Send> ParquetTable<W> {
    /// A table of `dim` numbers a line.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, dim: usize) -> io::Result<Self> {
        let schema = "message embeddings {
            required int64 row;
            required binary name (STRING);
            optional binary label (STRING);
            required group embedding (LIST) { repeated group list { required float element; } }
        }";
        let schema = Arc::new(parse_message_type(schema).map_err(other)?);
        // Embeddings hardly compress; names and labels do.
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("lemniscate ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let writer = SerializedFileWriter::new(out, schema, Arc::new(properties)).map_err(other)?;
        Ok(ParquetTable {
            writer,
            rows: Vec::new(),
            names: Vec::new(),
            labels: Vec::new(),
            values: Vec::new(),
            dim,
        })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Those of the file.
    /// # Panics
    /// If it has not D numbers.
    pub fn push(&mut self, line: Line<'_>) -> io::Result<()> {
        assert_eq!(line.values.len(), self.dim, "a line of D numbers");
        self.rows.push(line.row as i64);
        self.names.push(ByteArray::from(line.name));
        self.labels.push(line.label.map(ByteArray::from));
        self.values.extend_from_slice(line.values);
        if self.rows.len() == GROUP { self.flush().map_err(other) } else { Ok(()) }
    }

    /// Writes what is left, and the table of contents.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush().and_then(|()| self.writer.close()).map(drop).map_err(other)
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut group = self.writer.next_row_group()?;
        let mut column = group.next_column()?.expect("row");
        column.typed::<Int64Type>().write_batch(&self.rows, None, None)?;
        column.close()?;
        let mut column = group.next_column()?.expect("name");
        column.typed::<ByteArrayType>().write_batch(&self.names, None, None)?;
        column.close()?;
        let defined: Vec<i16> = self.labels.iter().map(|label| i16::from(label.is_some())).collect();
        let labels: Vec<ByteArray> = self.labels.drain(..).flatten().collect();
        let mut column = group.next_column()?.expect("label");
        column.typed::<ByteArrayType>().write_batch(&labels, Some(&defined), None)?;
        column.close()?;
        // A list's first element opens it (repetition 0), the others go on with it; none of them is missing.
        let repeated: Vec<i16> = (0..self.values.len()).map(|i| i16::from(i % self.dim != 0)).collect();
        let defined = vec![1; self.values.len()];
        let mut column = group.next_column()?.expect("embedding");
        column.typed::<FloatType>().write_batch(&self.values, Some(&defined), Some(&repeated))?;
        column.close()?;
        group.close()?;
        self.rows.clear();
        self.names.clear();
        self.values.clear();
        Ok(())
    }
}

fn other(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    #[test]
    fn csv_quotes_what_needs_it_and_keeps_every_bit() {
        let mut bytes = Vec::new();
        let mut table = CsvTable::new(&mut bytes, 2).unwrap();
        table.push(Line { row: 3, name: "a,\"b\".jpg", label: None, values: &[0.1, -1e-40] }).unwrap();
        table.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (header, line) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(header, "row,name,label,e0,e1");
        let numbers = line.strip_prefix("3,\"a,\"\"b\"\".jpg\",,").unwrap();
        let numbers: Vec<f32> = numbers.split(',').map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers, [0.1, -1e-40]);
    }

    #[test]
    fn parquet_comes_back_over_several_row_groups() {
        let file = tempfile::tempfile().unwrap();
        let lines = GROUP + 3;
        let mut table = ParquetTable::new(file.try_clone().unwrap(), 2).unwrap();
        for row in 0..lines {
            let name = format!("{row}.jpg");
            let label = (row % 3 != 0).then_some("cat");
            table.push(Line { row, name: &name, label, values: &[row as f32, -0.5] }).unwrap();
        }
        table.finish().unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let mut seen = 0;
        for (i, row) in reader.get_row_iter(None).unwrap().enumerate() {
            let row = row.unwrap();
            assert_eq!(row.get_long(0).unwrap(), i as i64);
            assert_eq!(row.get_string(1).unwrap(), &format!("{i}.jpg"));
            assert_eq!(row.get_string(2).ok().map(String::as_str), (i % 3 != 0).then_some("cat"));
            let list = row.get_list(3).unwrap();
            let values: Vec<f32> = list
                .elements()
                .iter()
                .map(|field| match field {
                    parquet::record::Field::Float(value) => *value,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(values, [i as f32, -0.5]);
            seen += 1;
        }
        assert_eq!(seen, lines);
    }
}
