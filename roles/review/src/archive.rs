//! Container images and other tar files: keys lie in their layers too, also those that a later layer removes.

mod image;
mod unpack;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use countersign_identity::UnixTime;

use self::image::Images;
use self::unpack::{Bounded, Form, form, head, unpacked};
use crate::issue::Issue;
use crate::material::{self, Facts, Together};
use crate::rule::Catalogue;
use crate::walk::{MAX_MATERIAL, MAX_TEXT, clean};

/// Most files of one archive.
const MAX_ENTRIES: usize = 2_000_000;
/// Most findings, and most files whose keys and certificates are compared.
const MAX_FOUND: usize = 10_000;
/// An image holds layers, and these may hold archives.
const MAX_DEPTH: usize = 3;
/// Longest name that is followed, bytes.
const MAX_NAME: u64 = 64 << 10;

/// What was found in one archive.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) issues: Vec<Issue>,
    pub(crate) files: usize,
    /// Parts that could not be read.
    pub(crate) unreadable: Vec<String>,
    /// Whether it is no archive, whatever its name.
    pub(crate) is_other: bool,
    /// Whether other people's code in it was passed over.
    pub(crate) skipped: bool,
}

/// How to look at an archive.
#[derive(Clone, Copy)]
pub(crate) struct Look<'c> {
    pub(crate) catalogue: &'c Catalogue,
    pub(crate) now: UnixTime,
    /// Also other people's code.
    pub(crate) everything: bool,
}

/// Whether a file is to be looked into: by its name, or as a blob of an OCI layout.
pub(crate) fn is_archive(path: &str) -> bool {
    is_named_so(path) || path.contains("blobs/sha256/")
}

/// Whether its name says that it must be one.
pub(crate) fn is_named_so(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| lower.ends_with(end))
}

/// Directories of an image in which other people's keys and certificates lie for their own tests.
fn is_of_others(path: &str) -> bool {
    const PARTS: [&str; 7] = [
        "site-packages/",
        "dist-packages/",
        "node_modules/",
        "usr/share/doc/",
        "usr/local/go/src/",
        "usr/lib/go",
        "/testdata/",
    ];
    PARTS.iter().any(|p| path.contains(p)) || path.contains("lib/python") && path.contains("/test/")
}

impl Look<'_> {
    /// Reads an archive, or a blob that may be one. What is found before an error counts.
    pub(crate) fn at(self, name: &str, path: &Path, together: &mut Together) -> io::Result<Found> {
        let file = BufReader::with_capacity(1 << 16, File::open(path)?);
        let mut reader = Reader {
            look: self,
            layers: Vec::new(),
            images: Images::default(),
            entries: 0,
            found: Found::default(),
        };
        match reader.stream("", Box::new(file), 0) {
            Ok(is_archive) => reader.found.is_other = !is_archive,
            Err(e) => reader.found.unreadable.push(e.to_string()),
        }
        Ok(reader.finish(name, together))
    }
}

/// Files of one layer, or of another archive in the archive.
#[derive(Default)]
struct Layer {
    /// The way to it within the archive: `aaa/layer.tar`, or `aaa/layer.tar!/opt/backup.tar`.
    name: String,
    /// With the path of the file that they are in.
    issues: Vec<(String, Vec<Issue>, Facts)>,
    /// Paths that this layer hides from those below.
    removes: BTreeSet<String>,
}

struct Reader<'c> {
    look: Look<'c>,
    layers: Vec<Layer>,
    images: Images,
    entries: usize,
    found: Found,
}

impl Reader<'_> {
    /// Reads a stream as far as it is an archive; `false` if it is none.
    fn stream(&mut self, name: &str, stream: Box<dyn Read + '_>, depth: usize) -> io::Result<bool> {
        let Some(tar) = unpacked(stream)? else { return Ok(false) };
        let mut layer = Layer { name: name.to_owned(), ..Layer::default() };
        let result = self.tar(&mut layer, tar, depth);
        // What came before the damage is there all the same.
        self.layers.push(layer);
        result.map(|()| true)
    }

    fn tar(&mut self, layer: &mut Layer, tar: Bounded<'_>, depth: usize) -> io::Result<()> {
        let mut archive = tar::Archive::new(tar);
        let mut long_name = None;
        // Raw: the library would read names of any length into memory.
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(io::Error::other(format!("more than {MAX_ENTRIES} files")));
            }
            let kind = entry.header().entry_type();
            if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                let mut bytes = Vec::new();
                (&mut entry).take(MAX_NAME).read_to_end(&mut bytes)?;
                let name = match kind.is_gnu_longname() {
                    true => Some(bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()),
                    false => tar::PaxExtensions::new(&bytes)
                        .flatten()
                        .find(|e| e.key_bytes() == b"path")
                        .map(|e| e.value_bytes().to_vec()),
                };
                long_name = name.or(long_name);
                continue;
            }
            let path = match long_name.take() {
                Some(name) => name,
                None => entry.path_bytes().into_owned(),
            };
            if !kind.is_file() && !kind.is_contiguous() {
                continue;
            }
            let path = clean(&String::from_utf8_lossy(&path));
            let path = path.trim_start_matches("./").trim_start_matches('/').to_owned();
            if let Some(removed) = image::whiteout(&path) {
                layer.removes.insert(removed);
                continue;
            }
            self.found.files += 1;
            if !self.look.everything && is_of_others(&path) {
                self.found.skipped = true;
                continue;
            }
            let size = entry.size();
            self.entry(layer, path, &mut entry, size, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        layer: &mut Layer,
        path: String,
        entry: &mut dyn Read,
        size: u64,
        depth: usize,
    ) -> io::Result<()> {
        if is_archive(&path) {
            let head = head(entry)?;
            if !matches!(form(&head), Form::Other) {
                let name = match layer.name.as_str() {
                    "" => path,
                    outer => format!("{outer}!/{path}"),
                };
                if depth + 1 > MAX_DEPTH {
                    self.found.unreadable.push(format!("{name}: archives within archives"));
                    return Ok(());
                }
                let whole = io::Cursor::new(head).chain(entry);
                match self.stream(&name, Box::new(whole), depth + 1) {
                    Ok(true) => {}
                    Ok(false) => self.found.unreadable.push(format!("{name}: no tar file")),
                    Err(e) => self.found.unreadable.push(format!("{name}: {e}")),
                }
                return Ok(());
            }
            let mut bytes = head;
            entry.take(MAX_TEXT).read_to_end(&mut bytes)?;
            return self.file(layer, path, &bytes, depth);
        }
        let is_material = material::is_interesting(&path);
        if size > if is_material { MAX_MATERIAL } else { MAX_TEXT } {
            if is_material {
                let why = format!("{path}: larger than {} MiB", MAX_MATERIAL >> 20);
                self.found.unreadable.push(why);
            }
            return Ok(());
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        self.file(layer, path, &bytes, depth)
    }

    fn file(
        &mut self,
        layer: &mut Layer,
        path: String,
        bytes: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        if depth == 0 {
            self.images.learn(&path, bytes);
        }
        let Look { catalogue, now, .. } = self.look;
        let mut facts = Facts::default();
        let mut issues = Vec::new();
        if material::is_interesting(&path) {
            issues = material::in_file(catalogue, &path, bytes, now, &mut facts);
        }
        // Programs hold templates of keys; what is read as text is text.
        if !bytes[..bytes.len().min(4096)].contains(&0)
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            issues.extend(material::in_text(catalogue, &path, text, now, &mut facts));
        }
        if !issues.is_empty() || !facts.is_empty() {
            if layer.issues.len() >= MAX_FOUND {
                return Err(io::Error::other(format!("more than {MAX_FOUND} files with keys")));
            }
            layer.issues.push((path, issues, facts));
        }
        Ok(())
    }

    /// Everything with its whole path, and with what later layers of its images say of it.
    fn finish(mut self, archive: &str, together: &mut Together) -> Found {
        let removes: Vec<(String, BTreeSet<String>)> =
            self.layers.iter().map(|l| (l.name.clone(), l.removes.clone())).collect();
        for layer in std::mem::take(&mut self.layers) {
            for (path, issues, facts) in layer.issues {
                let gone = self.images.is_removed(&layer.name, &path, &removes);
                let shown = match self.images.within(&layer.name) {
                    "" => format!("{archive}!/{path}"),
                    inner => format!("{archive}!/{inner}!/{path}"),
                };
                for mut issue in issues {
                    issue.path.clone_from(&shown);
                    if gone {
                        let what =
                            " (a later layer removes it: whoever has the image has it still)";
                        issue.message.push_str(what);
                    }
                    self.found.issues.push(issue);
                }
                together.add(&shown, facts);
            }
        }
        self.found
    }
}
