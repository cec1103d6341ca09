//! What a file is, by its name and a look at its text.

use tree_sitter::Language;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Go,
    Python,
    Java,
    Kotlin,
    CSharp,
    JavaScript,
    TypeScript,
    Rust,
    C,
    Cpp,
    Ruby,
    Php,
    Yaml,
    Json,
    Toml,
    Properties,
    Xml,
    Nginx,
    Apache,
    HaProxy,
    Caddy,
    Dockerfile,
    Shell,
    Systemd,
    Terraform,
}

/// The kinds with their names in rule files.
const NAMES: &[(&str, Kind)] = &[
    ("go", Kind::Go),
    ("python", Kind::Python),
    ("java", Kind::Java),
    ("kotlin", Kind::Kotlin),
    ("csharp", Kind::CSharp),
    ("javascript", Kind::JavaScript),
    ("typescript", Kind::TypeScript),
    ("rust", Kind::Rust),
    ("c", Kind::C),
    ("cpp", Kind::Cpp),
    ("ruby", Kind::Ruby),
    ("php", Kind::Php),
    ("yaml", Kind::Yaml),
    ("json", Kind::Json),
    ("toml", Kind::Toml),
    ("properties", Kind::Properties),
    ("xml", Kind::Xml),
    ("nginx", Kind::Nginx),
    ("apache", Kind::Apache),
    ("haproxy", Kind::HaProxy),
    ("caddy", Kind::Caddy),
    ("dockerfile", Kind::Dockerfile),
    ("shell", Kind::Shell),
    ("systemd", Kind::Systemd),
    ("terraform", Kind::Terraform),
];

impl Kind {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, k)| *k)
    }

    /// In lower case.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, k)| *k == self).map_or("", |(n, _)| n)
    }

    /// The grammar, for source code.
    pub(crate) fn language(self) -> Option<Language> {
        Some(match self {
            Kind::Go => tree_sitter_go::LANGUAGE.into(),
            Kind::Python => tree_sitter_python::LANGUAGE.into(),
            Kind::Java => tree_sitter_java::LANGUAGE.into(),
            Kind::Kotlin => tree_sitter_kotlin_ng::LANGUAGE.into(),
            Kind::CSharp => tree_sitter_c_sharp::LANGUAGE.into(),
            Kind::JavaScript => tree_sitter_javascript::LANGUAGE.into(),
            Kind::TypeScript => tree_sitter_typescript::LANGUAGE_TSX.into(),
            Kind::Rust => tree_sitter_rust::LANGUAGE.into(),
            Kind::C | Kind::Cpp => tree_sitter_cpp::LANGUAGE.into(),
            Kind::Ruby => tree_sitter_ruby::LANGUAGE.into(),
            Kind::Php => tree_sitter_php::LANGUAGE_PHP.into(),
            _ => return None,
        })
    }

    /// What a file of this name and text is; `None` for what no rule is about.
    pub fn of(path: &str, text: &str) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let lower = name.to_ascii_lowercase();
        let (stem, extension) = lower.rsplit_once('.').unwrap_or((&lower, ""));
        let by_text = || configuration(text);
        // `api.Dockerfile`, `Dockerfile.nginx`, but not `dockerfile_test.go`.
        const OTHERS: [&str; 18] = [
            "go", "py", "js", "ts", "rs", "java", "kt", "cs", "rb", "php", "c", "h", "cpp", "yaml",
            "yml", "json", "toml", "md",
        ];
        if lower.contains("dockerfile") && !OTHERS.contains(&extension) {
            return Some(Kind::Dockerfile);
        }
        Some(match extension {
            "go" => Kind::Go,
            "py" | "pyw" | "pyi" => Kind::Python,
            "java" => Kind::Java,
            "kt" | "kts" => Kind::Kotlin,
            "cs" => Kind::CSharp,
            "js" | "mjs" | "cjs" | "jsx" => Kind::JavaScript,
            "ts" | "tsx" | "mts" | "cts" => Kind::TypeScript,
            "rs" => Kind::Rust,
            "c" => Kind::C,
            "h" | "cc" | "cpp" | "cxx" | "hh" | "hpp" | "hxx" | "inl" | "ipp" => Kind::Cpp,
            "rb" | "rake" | "ru" => Kind::Ruby,
            "php" | "phps" | "php3" | "php4" | "php5" | "php7" | "php8" | "phtml" | "inc" => {
                Kind::Php
            }
            "yaml" | "yml" => Kind::Yaml,
            "tpl" | "tmpl" | "tmp" | "j2" | "template" | "erb" if !stem.is_empty() => {
                return Self::of(stem, text).or_else(by_text).or(Some(Kind::Yaml));
            }
            // A file of that kind for one place or as a pattern: `site.conf.dev`, `application.yml.sample`.
            "dev" | "prod" | "staging" | "example" | "sample" | "dist" | "default" | "local"
            | "in"
                if !stem.is_empty() =>
            {
                return Self::of(stem, text);
            }
            "json" | "jsonc" | "json5" => Kind::Json,
            "toml" => Kind::Toml,
            "properties" | "env" | "cnf" | "ini" => Kind::Properties,
            "xml" => Kind::Xml,
            "tf" | "tfvars" | "hcl" => Kind::Terraform,
            "sh" | "bash" | "zsh" | "ksh" => Kind::Shell,
            "service" | "socket" | "timer" => Kind::Systemd,
            "dockerfile" | "containerfile" => Kind::Dockerfile,
            _ if lower.contains("dockerfile") => Kind::Dockerfile,
            "caddyfile" | "caddyfiletest" => Kind::Caddy,
            "conf" | "cfg" | "vhost" | "htaccess" | "nginx" | "apache" => {
                return by_text().or(match lower.as_str() {
                    n if n.contains("nginx") => Some(Kind::Nginx),
                    n if n.contains("httpd") || n.contains("apache") => Some(Kind::Apache),
                    n if n.contains("haproxy") => Some(Kind::HaProxy),
                    _ => Some(Kind::Properties),
                });
            }
            _ if lower.contains("dockerfile") || lower.contains("containerfile") => {
                Kind::Dockerfile
            }
            _ if lower.contains("caddyfile") => Kind::Caddy,
            _ if lower.starts_with(".env") => Kind::Properties,
            _ if matches!(lower.as_str(), "gemfile" | "rakefile" | "puma.rb") => Kind::Ruby,
            _ if lower.contains("haproxy") => Kind::HaProxy,
            // Annotations of ingress-nginx.
            _ if lower.starts_with("nginx") || lower.ends_with("-snippet") => Kind::Nginx,
            _ if text.starts_with("#!") => match text.lines().next().unwrap_or_default() {
                l if l.contains("python") => Kind::Python,
                l if l.contains("node") => Kind::JavaScript,
                l if l.contains("ruby") => Kind::Ruby,
                l if l.contains("php") => Kind::Php,
                l if l.contains("sh") => Kind::Shell,
                _ => return None,
            },
            // nginx and Apache sites have names without extensions.
            "" => return by_text(),
            _ => return None,
        })
    }
}

/// Which server a configuration file is for, by words that only it uses.
fn configuration(text: &str) -> Option<Kind> {
    let head: String = text.chars().take(64 << 10).collect();
    let has = |words: &[&str]| words.iter().any(|w| head.contains(w));
    let line = |words: &[&str]| {
        head.lines().any(|l| {
            let l = l.trim_start();
            words.iter().any(|w| l.starts_with(w))
        })
    };
    if line(&[
        "SSLVerifyClient",
        "SSLEngine",
        "<VirtualHost",
        "SSLProxy",
        "SSLCertificateFile",
        "ProxyPass ",
    ]) {
        return Some(Kind::Apache);
    }
    if line(&[
        "ssl_verify_client",
        "ssl_certificate",
        "proxy_pass",
        "grpc_pass",
        "server {",
        "server{",
        "upstream ",
    ]) {
        return Some(Kind::Nginx);
    }
    if line(&["frontend ", "backend ", "listen "]) && has(&["bind ", "server ", "mode "]) {
        return Some(Kind::HaProxy);
    }
    None
}
