//! Container images and other tar files: keys lie in their layers too, also those that a later layer removes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use countersign_identity::UnixTime;

use crate::issue::Issue;
use crate::material::{self, Facts, Together};
use crate::rule::Catalogue;
use crate::walk::MAX_TEXT;

/// Most bytes of one archive, unpacked: a larger one is told of, and not passed over in silence.
const MAX_UNPACKED: u64 = 8 << 30;
/// Most files of one archive.
const MAX_ENTRIES: usize = 2_000_000;
/// Descriptions of an image are small.
const MAX_JSON: u64 = 4 << 20;
/// An image holds layers, and these may hold images.
const MAX_DEPTH: usize = 3;
/// Compression of what is compressed: once is usual.
const MAX_WRAPS: usize = 2;

/// What was found in one archive.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) issues: Vec<Issue>,
    pub(crate) files: usize,
    /// Parts that could not be read.
    pub(crate) unreadable: Vec<String>,
}

/// Whether a file is to be looked into: by its name, or as a blob of an OCI layout.
pub(crate) fn is_archive(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| lower.ends_with(end))
        || lower.contains("blobs/sha256/")
}

/// Reads an archive, or a blob that may be one.
pub(crate) fn look(
    catalogue: &Catalogue,
    name: &str,
    path: &Path,
    now: UnixTime,
    together: &mut Together,
) -> io::Result<Found> {
    let file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut reader = Reader {
        catalogue,
        now,
        layers: Vec::new(),
        json: BTreeMap::new(),
        left: MAX_UNPACKED,
        entries: 0,
        found: Found::default(),
    };
    reader.stream(name, Box::new(file), 0, 0)?;
    Ok(reader.finish(name, together))
}

/// Files of one layer.
#[derive(Default)]
struct Layer {
    /// The layer's own name within the archive; empty for the outermost.
    name: String,
    /// With the path of the file that they are in.
    issues: Vec<(String, Vec<Issue>, Facts)>,
    /// Paths that this layer hides from those below.
    removes: BTreeSet<String>,
}

struct Reader<'c> {
    catalogue: &'c Catalogue,
    now: UnixTime,
    layers: Vec<Layer>,
    /// Small documents at the outermost level: they say in which order layers come.
    json: BTreeMap<String, String>,
    left: u64,
    entries: usize,
    found: Found,
}

/// What a stream is, by its first bytes.
enum Form {
    Tar,
    Gzip,
    Zstd,
    Other,
}

fn form(head: &[u8]) -> Form {
    match head {
        [0x1f, 0x8b, ..] => Form::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Form::Zstd,
        _ if head.get(257..262) == Some(b"ustar") => Form::Tar,
        _ => Form::Other,
    }
}

/// Up to 512 bytes from the beginning; what follows is still in the stream.
fn head(stream: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    stream.take(512).read_to_end(&mut head)?;
    Ok(head)
}

impl Reader<'_> {
    /// Unpacks a stream, as far as it is an archive. `name` is what its files are shown in.
    fn stream(
        &mut self,
        name: &str,
        mut stream: Box<dyn Read + '_>,
        depth: usize,
        wraps: usize,
    ) -> io::Result<bool> {
        let head = head(&mut *stream)?;
        let whole = io::Cursor::new(head.clone()).chain(stream);
        match form(&head) {
            Form::Tar => {
                self.tar(name, Box::new(whole), depth)?;
                Ok(true)
            }
            Form::Gzip if wraps < MAX_WRAPS => self.stream(
                name,
                Box::new(flate2::read::MultiGzDecoder::new(whole)),
                depth,
                wraps + 1,
            ),
            Form::Zstd if wraps < MAX_WRAPS => {
                let decoder =
                    ruzstd::decoding::StreamingDecoder::new(whole).map_err(io::Error::other)?;
                self.stream(name, Box::new(decoder), depth, wraps + 1)
            }
            _ => Ok(false),
        }
    }

    fn tar(&mut self, name: &str, stream: Box<dyn Read + '_>, depth: usize) -> io::Result<()> {
        let mut archive = tar::Archive::new(stream);
        let mut layer = Layer { name: name.to_owned(), ..Layer::default() };
        for entry in archive.entries()? {
            let mut entry = entry?;
            let size = entry.size();
            self.entries += 1;
            self.left = self.left.saturating_sub(size);
            if self.left == 0 || self.entries > MAX_ENTRIES {
                let what =
                    format!("more than {} GiB or {MAX_ENTRIES} files unpacked", MAX_UNPACKED >> 30);
                return Err(io::Error::other(what));
            }
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = path.trim_start_matches("./").trim_start_matches('/').to_owned();
            if let Some(removed) = whiteout(&path) {
                layer.removes.insert(removed);
                continue;
            }
            self.found.files += 1;
            if depth < MAX_DEPTH && (is_archive(&path) || path.ends_with("layer.tar")) {
                self.nested(&path, &mut entry, size, depth)?;
                continue;
            }
            if depth == 0 && size <= MAX_JSON && path.ends_with(".json") {
                let mut text = String::new();
                if entry.read_to_string(&mut text).is_ok() {
                    self.json.insert(path, text);
                }
                continue;
            }
            if size > MAX_TEXT {
                continue;
            }
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            entry.read_to_end(&mut bytes)?;
            self.file(&mut layer, path, &bytes);
        }
        self.layers.push(layer);
        Ok(())
    }

    /// A layer, or a document of the image.
    fn nested(
        &mut self,
        path: &str,
        entry: &mut dyn Read,
        size: u64,
        depth: usize,
    ) -> io::Result<()> {
        let mut entry = entry;
        let head = head(&mut entry)?;
        let rest = io::Cursor::new(head.clone()).chain(entry);
        if matches!(form(&head), Form::Other) {
            if size <= MAX_JSON && head.first() == Some(&b'{') {
                let mut text = String::new();
                if rest.take(MAX_JSON).read_to_string(&mut text).is_ok() {
                    self.json.insert(path.to_owned(), text);
                }
            }
            return Ok(());
        }
        if let Err(e) = self.stream(path, Box::new(rest), depth + 1, 0) {
            self.found.unreadable.push(format!("{path}: {e}"));
        }
        Ok(())
    }

    fn file(&mut self, layer: &mut Layer, path: String, bytes: &[u8]) {
        let mut facts = Facts::default();
        let mut issues = Vec::new();
        if material::is_interesting(&path) {
            issues = material::in_file(self.catalogue, &path, bytes, self.now, &mut facts);
        }
        // Programs hold templates of keys; what is read as text is text.
        if !bytes[..bytes.len().min(4096)].contains(&0)
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            let more = material::in_text(self.catalogue, &path, text, self.now, &mut facts);
            issues.extend(more);
        }
        if !issues.is_empty() || !facts.keys.is_empty() || !facts.certificates.is_empty() {
            layer.issues.push((path, issues, facts));
        }
    }

    /// Layers in their order, with what later ones remove.
    fn finish(mut self, archive: &str, together: &mut Together) -> Found {
        let order = order(&self.json);
        let place = |name: &str| order.iter().position(|layer| layer == name);
        self.layers.sort_by_key(|layer| place(&layer.name));
        let removes: Vec<BTreeSet<String>> =
            self.layers.iter().map(|l| l.removes.clone()).collect();
        for (i, layer) in self.layers.into_iter().enumerate() {
            for (path, issues, facts) in layer.issues {
                let gone = removes[i + 1..].iter().any(|removed| is_removed(removed, &path));
                // Without an order nobody knows which layer is the later one.
                let gone = gone && !order.is_empty();
                let shown = format!("{archive}!/{path}");
                for mut issue in issues {
                    issue.path.clone_from(&shown);
                    if gone {
                        issue.message.push_str(
                            " (a later layer removes it: whoever has the image has it still)",
                        );
                    }
                    self.found.issues.push(issue);
                }
                together.add(&shown, facts);
            }
        }
        self.found
    }
}

/// What a whiteout hides: `etc/.wh.tls.key` a file, `etc/.wh..wh..opq` all that is below (OCI image-spec, layer.md).
fn whiteout(path: &str) -> Option<String> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let hidden = name.strip_prefix(".wh.")?;
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    Some(if hidden == ".wh..opq" { prefix } else { format!("{prefix}{hidden}") })
}

fn is_removed(removed: &BTreeSet<String>, path: &str) -> bool {
    // Itself, or a directory above it.
    removed.contains(path)
        || path
            .match_indices('/')
            .any(|(i, _)| removed.contains(&path[..i]) || removed.contains(&path[..=i]))
        || removed.contains("")
}

/// Names of layers, lowest first, as `docker save` (manifest.json) or an OCI layout (index.json and its manifests) say.
fn order(json: &BTreeMap<String, String>) -> Vec<String> {
    let parse = |text: &String| serde_json::from_str::<serde_json::Value>(text).ok();
    if let Some(manifest) = json.get("manifest.json").and_then(parse) {
        let layers = manifest[0]["Layers"].as_array().into_iter().flatten();
        return layers.filter_map(|l| l.as_str().map(str::to_owned)).collect();
    }
    let blob =
        |digest: &str| digest.strip_prefix("sha256:").map(|hex| format!("blobs/sha256/{hex}"));
    let manifests = json.values().filter_map(parse).filter(|v| v["layers"].is_array());
    let mut out = Vec::new();
    for manifest in manifests {
        let layers = manifest["layers"].as_array().into_iter().flatten();
        out.extend(layers.filter_map(|l| blob(l["digest"].as_str()?)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_hide_files_and_directories() {
        assert_eq!(whiteout("etc/ssl/.wh.tls.key").unwrap(), "etc/ssl/tls.key");
        assert_eq!(whiteout("etc/.wh..wh..opq").unwrap(), "etc/");
        assert_eq!(whiteout(".wh.root").unwrap(), "root");
        assert_eq!(whiteout("etc/tls.key"), None);
        let removed = |what: &str| BTreeSet::from([what.to_owned()]);
        assert!(is_removed(&removed("etc/ssl/tls.key"), "etc/ssl/tls.key"));
        assert!(is_removed(&removed("etc/ssl"), "etc/ssl/tls.key"));
        assert!(is_removed(&removed("etc/"), "etc/ssl/tls.key"));
        assert!(!is_removed(&removed("etc/ssl/tls"), "etc/ssl/tls.key"));
    }
}
