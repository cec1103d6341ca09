//! What a syntax tree tells about a file: comments, strings, and the parts that conditions look at.

use std::ops::Range;

use tree_sitter::{Node, Parser, Tree};

use crate::kind::Kind;

/// A function or closure.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// Empty for closures.
    pub(crate) name: String,
    pub(crate) range: Range<usize>,
    /// Where its body begins.
    pub(crate) body: usize,
}

/// A branch with its condition.
#[derive(Clone, Debug)]
pub(crate) struct Branch {
    pub(crate) range: Range<usize>,
    pub(crate) condition: Range<usize>,
    /// Of a `switch` or `when`: what the condition compares is elsewhere.
    pub(crate) arm: bool,
    /// Where what happens otherwise begins.
    pub(crate) otherwise: Option<usize>,
    /// What an arm of Rust's `match` is compared with.
    pub(crate) subject: Option<Range<usize>>,
}

/// The parts of a source file.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) comments: Vec<Range<usize>>,
    /// What stands between the quotes.
    pub(crate) strings: Vec<Range<usize>>,
    pub(crate) functions: Vec<Function>,
    pub(crate) classes: Vec<Range<usize>>,
    pub(crate) calls: Vec<Range<usize>>,
    pub(crate) chains: Vec<Range<usize>>,
    pub(crate) literals: Vec<Range<usize>>,
    pub(crate) statements: Vec<Range<usize>>,
    pub(crate) branches: Vec<Branch>,
    /// Arms of which one is taken, each with what they are all part of.
    pub(crate) arms: Vec<(Range<usize>, Range<usize>)>,
    /// Inline tests of Rust.
    pub(crate) tests: Vec<Range<usize>>,
}

/// Deepest nesting that is followed; what lies deeper has no parts of its own.
const MAX_DEPTH: usize = 400;

/// Parses `text`; `None` if the grammar cannot be used or the parser gives up.
pub(crate) fn parse(kind: Kind, text: &str) -> Option<Parts> {
    let mut parser = Parser::new();
    parser.set_language(&kind.language()?).ok()?;
    let tree: Tree = parser.parse(text, None)?;
    let mut parts = Parts::default();
    collect(tree.root_node(), text, &mut parts, 0, false);
    Some(parts)
}

fn collect(node: Node<'_>, text: &str, parts: &mut Parts, depth: usize, in_chain: bool) {
    let kind = node.kind();
    let range = node.byte_range();
    if kind.contains("comment") && !kind.contains("commented") {
        parts.comments.push(range);
        return;
    }
    if kind == "string" && is_docstring(node) {
        parts.comments.push(range);
        return;
    }
    if is_string(kind) {
        parts.strings.push(inside(&text[range.clone()], range.start));
        // Code in interpolations is rare, and rarely what a rule is about.
        return;
    }
    let call = is_call(kind);
    let linked = call || is_member(kind);
    if node.is_named() {
        if call {
            parts.calls.push(range.clone());
        }
        if linked && !in_chain {
            parts.chains.push(range.clone());
        }
        if is_literal(kind) {
            parts.literals.push(range.clone());
        }
        if is_class(kind) || kind == "object_creation_expression" && has_child(node, "class_body") {
            parts.classes.push(range.clone());
        }
        if is_statement(kind) {
            parts.statements.push(range.clone());
        }
        if is_function(kind) {
            parts.functions.push(function(node, text));
        }
        if kind == "mod_item" && preceded_by_cfg_test(node, text) {
            parts.tests.push(range.clone());
        }
        if is_one_of_several(kind)
            && let Some(all) = node.parent()
        {
            parts.arms.push((range.clone(), all.byte_range()));
        }
        if let Some(condition) = condition(node) {
            let arm = is_arm(kind);
            let otherwise = otherwise(node);
            let subject = matched(node);
            let range = range.clone();
            parts.branches.push(Branch { range, condition, arm, otherwise, subject });
        }
    }
    if depth >= MAX_DEPTH {
        return;
    }
    let mut cursor = node.walk();
    for (i, child) in node.children(&mut cursor).enumerate() {
        // A chain goes on through what is called upon, not through arguments.
        let receiver = i == 0 && linked;
        collect(child, text, parts, depth + 1, receiver);
    }
}

/// A string that is a statement: what Python has for documentation.
fn is_docstring(node: Node<'_>) -> bool {
    node.parent().is_some_and(|p| p.kind() == "expression_statement" && p.named_child_count() == 1)
        && node.child(0).is_some_and(|c| c.kind() == "string_start")
}

fn has_child(node: Node<'_>, kind: &str) -> bool {
    let mut cursor = node.walk();
    node.children(&mut cursor).any(|c| c.kind() == kind)
}

fn is_string(kind: &str) -> bool {
    matches!(
        kind,
        "string"
            | "string_literal"
            | "interpreted_string_literal"
            | "raw_string_literal"
            | "template_string"
            | "verbatim_string_literal"
            | "interpolated_string_expression"
            | "encapsed_string"
            | "heredoc"
            | "heredoc_body"
            | "nowdoc"
            | "multiline_string_literal"
            | "line_string_literal"
            | "multi_line_string_literal"
            | "regex"
            | "text_block"
    )
}

fn is_call(kind: &str) -> bool {
    matches!(
        kind,
        "call_expression"
            | "call"
            | "method_invocation"
            | "object_creation_expression"
            | "invocation_expression"
            | "function_call_expression"
            | "member_call_expression"
            | "nullsafe_member_call_expression"
            | "scoped_call_expression"
            | "new_expression"
            | "macro_invocation"
            | "explicit_constructor_invocation"
            | "implicit_object_creation_expression"
    )
}

fn is_member(kind: &str) -> bool {
    matches!(
        kind,
        "selector_expression"
            | "attribute"
            | "field_access"
            | "field_expression"
            | "member_expression"
            | "member_access_expression"
            | "navigation_expression"
            | "await_expression"
            | "try_expression"
            | "subscript_expression"
            | "generic_function"
    )
}

fn is_literal(kind: &str) -> bool {
    matches!(
        kind,
        "composite_literal"
            | "dictionary"
            | "object"
            | "struct_expression"
            | "initializer_expression"
            | "initializer_list"
            | "hash"
            | "array_creation_expression"
            | "anonymous_object_creation_expression"
            | "object_creation_expression"
            | "implicit_object_creation_expression"
    )
}

fn is_class(kind: &str) -> bool {
    matches!(
        kind,
        "class_declaration"
            | "class_definition"
            | "class"
            | "class_specifier"
            | "struct_specifier"
            | "struct_declaration"
            | "record_declaration"
            | "interface_declaration"
            | "object_declaration"
            | "object_literal"
            | "companion_object"
            | "impl_item"
            | "trait_item"
            | "enum_declaration"
    )
}

fn is_statement(kind: &str) -> bool {
    (kind.ends_with("_statement") || kind.ends_with("_declaration") || kind.ends_with("assignment"))
        && !kind.starts_with("if")
        && !kind.starts_with("for")
        && !kind.starts_with("try")
        && !kind.starts_with("while")
        && !kind.starts_with("with")
        && !kind.starts_with("compound")
        && !kind.starts_with("switch")
        && !is_function(kind)
        && !is_class(kind)
}

fn is_function(kind: &str) -> bool {
    matches!(
        kind,
        "function_declaration"
            | "method_declaration"
            | "func_literal"
            | "function_definition"
            | "lambda"
            | "lambda_expression"
            | "lambda_literal"
            | "constructor_declaration"
            | "anonymous_function"
            | "anonymous_method_expression"
            | "anonymous_function_creation_expression"
            | "local_function_statement"
            | "method_definition"
            | "arrow_function"
            | "function_expression"
            | "generator_function_declaration"
            | "function_item"
            | "closure_expression"
            | "method"
            | "singleton_method"
            | "do_block"
    )
}

fn function(node: Node<'_>, text: &str) -> Function {
    let name = match node.kind() {
        // Of closures a part of the signature is called a declarator too.
        "lambda_expression" => None,
        "arrow_function" | "function_expression" => {
            node.child_by_field_name("name").or_else(|| assigned_to(node, text))
        }
        _ => node.child_by_field_name("name").or_else(|| declarator(node)),
    };
    let name = name.map(|n| text[n.byte_range()].to_owned()).unwrap_or_default();
    let body = node
        .child_by_field_name("body")
        .map(|b| b.start_byte())
        .or_else(|| {
            let mut cursor = node.walk();
            node.children(&mut cursor)
                .find(|c| matches!(c.kind(), "function_body" | "block" | "statements"))
                .map(|c| c.start_byte())
        })
        .unwrap_or(node.start_byte());
    Function { name, range: node.byte_range(), body }
}

/// The name that a function of JavaScript gets by where it stands: `const f = () => …`, `exports.f = …`.
fn assigned_to<'t>(node: Node<'t>, text: &str) -> Option<Node<'t>> {
    let parent = node.parent()?;
    let target = match parent.kind() {
        "variable_declarator" => parent.child_by_field_name("name")?,
        // A field of any other object is set where the code around says, and is part of it.
        "assignment_expression" => parent
            .child_by_field_name("left")
            .filter(|l| text[l.byte_range()].contains("exports."))?,
        "field_definition" => parent.child_by_field_name("property")?,
        "public_field_definition" => parent.child_by_field_name("name")?,
        _ => return None,
    };
    match target.kind() {
        "member_expression" => target.child_by_field_name("property"),
        "identifier" | "property_identifier" | "private_property_identifier" => Some(target),
        _ => None,
    }
}

/// The name in a C declaration: `static int *f(…)`.
fn declarator(node: Node<'_>) -> Option<Node<'_>> {
    let mut inner = node.child_by_field_name("declarator")?;
    for _ in 0..8 {
        match inner.child_by_field_name("declarator") {
            Some(next) => inner = next,
            None => break,
        }
    }
    Some(inner)
}

/// The condition of a branch: `if`, `?:`, `case`, `when`, trailing `if`.
fn condition(node: Node<'_>) -> Option<Range<usize>> {
    let kind = node.kind();
    let is_branch = matches!(
        kind,
        "if_statement"
            | "if_expression"
            | "elif_clause"
            | "else_if_clause"
            | "if"
            | "elsif"
            | "unless"
            | "if_modifier"
            | "unless_modifier"
            | "ternary_expression"
            | "conditional_expression"
            | "conditional"
            | "when_entry"
            | "expression_case"
            | "switch_section"
            | "switch_case"
            | "case_statement"
            | "match_arm"
            | "case_clause"
            | "when"
            | "switch_block_statement_group"
            | "switch_rule"
    );
    if !is_branch {
        return None;
    }
    // The field `value` of an arm is what comes of it.
    if kind == "match_arm" {
        return node.child_by_field_name("pattern").map(|c| c.byte_range());
    }
    if let Some(c) =
        node.child_by_field_name("condition").or_else(|| node.child_by_field_name("value"))
    {
        // `if v := of(x); v {`: what it is about stands before it.
        return match node.child_by_field_name("initializer") {
            Some(first) if c.kind() == "identifier" => Some(first.start_byte()..c.end_byte()),
            _ => Some(c.byte_range()),
        };
    }
    if kind == "conditional_expression" {
        // Python: `a if c else b`.
        return node.named_child(1).map(|c| c.byte_range());
    }
    node.named_child(0).map(|c| c.byte_range())
}

/// What the arms of a `match` are compared with.
fn matched(node: Node<'_>) -> Option<Range<usize>> {
    let expression = node.parent().filter(|_| node.kind() == "match_arm")?.parent()?;
    expression.child_by_field_name("value").map(|v| v.byte_range())
}

/// Where what happens otherwise begins; some grammars give it no name.
fn otherwise(node: Node<'_>) -> Option<usize> {
    let mut cursor = node.walk();
    let named = node.child_by_field_name("alternative");
    named
        .or_else(|| node.children(&mut cursor).find(|c| c.kind() == "else"))
        .map(|n| n.start_byte())
}

/// Of an `if` all arms but the first, which the branch itself tells of.
fn is_one_of_several(kind: &str) -> bool {
    matches!(
        kind,
        "elif_clause"
            | "else_if_clause"
            | "elsif"
            | "when"
            | "when_entry"
            | "match_arm"
            | "case_clause"
            | "case_statement"
            | "expression_case"
            | "type_case"
            | "default_case"
            | "switch_case"
            | "switch_default"
            | "switch_section"
            | "switch_block_statement_group"
            | "switch_rule"
            | "default_statement"
    )
}

fn is_arm(kind: &str) -> bool {
    matches!(kind, "when_entry" | "switch_section" | "switch_block_statement_group" | "switch_rule")
}

fn preceded_by_cfg_test(node: Node<'_>, text: &str) -> bool {
    let mut before = node.prev_sibling();
    while let Some(b) =
        before.filter(|b| b.kind() == "attribute_item" || b.kind().contains("comment"))
    {
        let attribute = &text[b.byte_range()];
        if ["cfg(test)", "cfg(all(test,", "cfg(any(test,"].iter().any(|c| attribute.contains(c)) {
            return true;
        }
        before = b.prev_sibling();
    }
    false
}

/// What stands between the quotes of a string.
fn inside(text: &str, start: usize) -> Range<usize> {
    let bytes = text.as_bytes();
    let quote = |b: &u8| matches!(b, b'"' | b'\'' | b'`');
    let head = bytes.iter().take_while(|b| !quote(b)).count();
    if head >= bytes.len() || head > 8 {
        return start..start + text.len();
    }
    let opening = bytes[head..].iter().take(3).take_while(|b| quote(b)).count();
    // `""` is an empty string, `"""` opens a long one.
    let opening = if opening == 2 { 1 } else { opening };
    let from = (head + opening).min(bytes.len());
    let closing = bytes[from..].iter().rev().take_while(|b| quote(b) || **b == b'#').count();
    let closing =
        closing.min(opening.max(1) + bytes[..head].iter().filter(|b| **b == b'#').count());
    let to = bytes.len().saturating_sub(closing).max(from);
    start + from..start + to
}
