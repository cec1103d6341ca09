//! Which layers an image is made of, and in which order.

use std::collections::BTreeSet;

use serde_json::Value;

/// Most bytes of descriptions that are kept of one archive.
const MAX_KEPT: usize = 16 << 20;

/// The images of an archive: names of layers, lowest first.
#[derive(Default)]
pub(super) struct Images {
    images: Vec<Vec<String>>,
    read: usize,
}

impl Images {
    /// Takes in what a file of the outermost level says: `docker save`'s manifest.json, or a manifest of an OCI
    /// layout (image-spec, manifest.md).
    pub(super) fn learn(&mut self, path: &str, bytes: &[u8]) {
        let is_docker = path == "manifest.json";
        if !is_docker && !path.contains("blobs/sha256/")
            || bytes.first().is_none_or(|b| !b"{[".contains(b))
        {
            return;
        }
        self.read += bytes.len();
        if self.read > MAX_KEPT {
            return;
        }
        let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
        let texts = |layers: &Value, of: &dyn Fn(&Value) -> Option<String>| -> Vec<String> {
            layers.as_array().into_iter().flatten().filter_map(of).collect()
        };
        if is_docker {
            for image in value.as_array().into_iter().flatten() {
                let layers = texts(&image["Layers"], &|l| l.as_str().map(str::to_owned));
                self.images.push(layers);
            }
        } else if value["layers"].is_array() {
            let blob = |l: &Value| {
                let hex = l["digest"].as_str()?.strip_prefix("sha256:")?;
                Some(format!("blobs/sha256/{hex}"))
            };
            self.images.push(texts(&value["layers"], &blob));
        }
    }

    /// What is to be shown of the way to an archive in the archive: nothing of a layer, as nobody knows it by name.
    pub(super) fn within<'n>(&self, name: &'n str) -> &'n str {
        let (first, rest) = name.split_once("!/").unwrap_or((name, ""));
        if self.images.iter().flatten().any(|layer| layer == first) { rest } else { name }
    }

    /// Whether in every image with this layer a later one removes the file. `removes` is what each layer removes.
    pub(super) fn is_removed(
        &self,
        layer: &str,
        path: &str,
        removes: &[(String, BTreeSet<String>)],
    ) -> bool {
        let mut with_it =
            self.images.iter().filter(|image| image.iter().any(|l| l == layer)).peekable();
        with_it.peek().is_some()
            && with_it.all(|image| {
                let later = image.iter().skip_while(|l| *l != layer).skip(1);
                let mut later = later.filter_map(|l| removes.iter().find(|(name, _)| name == l));
                later.any(|(_, removed)| hides(removed, path))
            })
    }
}

/// What a whiteout hides: `etc/.wh.tls.key` a file, `etc/.wh..wh..opq` all that is below (OCI image-spec, layer.md).
pub(super) fn whiteout(path: &str) -> Option<String> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let hidden = name.strip_prefix(".wh.")?;
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    Some(if hidden == ".wh..opq" { prefix } else { format!("{prefix}{hidden}") })
}

/// Itself, or a directory above it.
fn hides(removed: &BTreeSet<String>, path: &str) -> bool {
    let mut above = path.match_indices('/').flat_map(|(i, _)| [&path[..i], &path[..=i]]);
    removed.contains(path) || removed.contains("") || above.any(|d| removed.contains(d))
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
        assert!(hides(&removed("etc/ssl/tls.key"), "etc/ssl/tls.key"));
        assert!(hides(&removed("etc/ssl"), "etc/ssl/tls.key"));
        assert!(hides(&removed("etc/"), "etc/ssl/tls.key"));
        assert!(!hides(&removed("etc/ssl/tls"), "etc/ssl/tls.key"));
    }

    #[test]
    fn each_image_has_its_own_order() {
        let mut images = Images::default();
        images
            .learn("manifest.json", br#"[{"Layers":["a","b"]},{"Layers":["c"]},{"Layers":["a"]}]"#);
        let removes = vec![("b".to_owned(), BTreeSet::from(["k".to_owned()]))];
        assert!(!images.is_removed("c", "k", &removes), "of another image");
        assert!(!images.is_removed("a", "k", &removes), "the third image has it still");
        assert_eq!(
            (images.within("a"), images.within("a!/b.tar"), images.within("x.tar")),
            ("", "b.tar", "x.tar")
        );
    }
}
