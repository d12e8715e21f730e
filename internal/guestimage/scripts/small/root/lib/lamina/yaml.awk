# Flattens the YAML that seeds are made of into lines "a.b.0.c<TAB>value":
# block and flow collections, plain, quoted, literal and folded scalars. In a
# value newline and backslash are written \n and \\. Not known: anchors, tags,
# multi-line quoted scalars, keys with spaces.
# escape puts by in the place of each c. (What gsub makes of backslashes in
# its replacement differs from awk to awk.)
function escape(v, c, by,   i, n, part, r) {
    n = split(v, part, c)
    r = part[1]
    for (i = 2; i <= n; i++) r = r by part[i]
    return r
}
function emit(path, v) {
    gsub(/\\/, "&&", v)
    print substr(path, 2) "\t" escape(escape(v, "\n", "\\n"), "\t", "\\t")
}
function flush_pending() {
    if (pending != "") emit(pending, plain(pending_value))
    pending = ""
}
# plain decodes a scalar: quotes, escapes, comment.
function plain(s,   i, c, r) {
    if (s ~ /^"/) {
        r = ""
        for (i = 2; i <= length(s); i++) {
            c = substr(s, i, 1)
            if (c == "\"") break
            if (c == "\\") {
                c = substr(s, ++i, 1)
                if (c == "n") c = "\n"
                else if (c == "t") c = "\t"
            }
            r = r c
        }
        return r
    }
    if (s ~ /^'/) {
        r = ""
        for (i = 2; i <= length(s); i++) {
            c = substr(s, i, 1)
            if (c == "'") {
                if (substr(s, i + 1, 1) != "'") break
                i++
            }
            r = r c
        }
        return r
    }
    sub(/[ \t]+#.*$/, "", s)
    sub(/[ \t]+$/, "", s)
    if (s == "~" || s == "null") return ""
    return s
}
function is_flow(s) { return substr(s, 1, 1) == "[" || substr(s, 1, 1) == "{" }
# depth_of counts the brackets that a flow collection leaves open.
function depth_of(s,   i, c, q, d) {
    d = 0; q = ""
    for (i = 1; i <= length(s); i++) {
        c = substr(s, i, 1)
        if (q != "") {
            if (q == "\"" && c == "\\") i++
            else if (c == q) q = ""
        } else if (c == "\"" || c == "'") q = c
        else if (c == "[" || c == "{") d++
        else if (c == "]" || c == "}") d--
    }
    return d
}
# one_of tells whether the next character is one of set.
function one_of(set,   c) {
    c = substr(fs, fp, 1)
    return c != "" && index(set, c) > 0
}
# flow parses the flow node of fs at position fp.
function flow(path,   c, n, key, start) {
    while (substr(fs, fp, 1) == " ") fp++
    c = substr(fs, fp, 1)
    if (c == "[" || c == "{") {
        fp++
        n = 0
        while (fp <= length(fs)) {
            while (one_of(" ,")) fp++
            if (one_of("]}")) { fp++; return }
            start = fp
            if (c == "[") flow(path "." n++)
            else {
                key = plain(flow_scalar(":"))
                while (one_of(" :")) fp++
                flow(path "." key)
            }
            if (fp == start) fp++ # not YAML: never stand still
        }
        return
    }
    emit(path, plain(flow_scalar("")))
}
function flow_scalar(stop,   c, start, q) {
    start = fp
    q = substr(fs, fp, 1)
    if (q == "\"" || q == "'") {
        for (fp++; fp <= length(fs); fp++) {
            c = substr(fs, fp, 1)
            if (q == "\"" && c == "\\") fp++
            else if (c == q) { fp++; break }
        }
        return substr(fs, start, fp - start)
    }
    while (fp <= length(fs)) {
        c = substr(fs, fp, 1)
        if (c == "," || c == "]" || c == "}" || (stop != "" && c == stop)) break
        fp++
    }
    return substr(fs, start, fp - start)
}
# value handles what stands behind "key:" or "-".
function value(path, n, v) {
    if (v ~ /^[|>][-+0-9]*[ \t]*(#.*)?$/) {
        block_path = path; block_indent = n; block_style = substr(v, 1, 1)
        block_chomp = v ~ /-/ ? "-" : (v ~ /\+/ ? "+" : "")
        block_at = -1; block_text = ""; in_block = 1
    } else if (is_flow(v)) {
        fs = v; fp = 1
        if (depth_of(fs) > 0) { flow_path = path; in_flow = 1; return }
        flow(path)
    } else if (v != "" && v !~ /^#/) {
        pending = path; pending_value = v; pending_indent = n
    }
}
# fold makes a space of each single line break, and of n + 1 of them n.
function fold(s,   i, n, lines, r) {
    n = split(s, lines, "\n")
    r = lines[1]
    for (i = 2; i <= n; i++) {
        if (lines[i] == "") r = r "\n"
        else r = r (lines[i - 1] == "" ? "" : " ") lines[i]
    }
    return r
}
function end_block() {
    in_block = 0
    if (block_style == ">") block_text = fold(block_text)
    if (block_chomp != "+") sub(/\n+$/, block_chomp == "-" ? "" : "\n", block_text)
    emit(block_path, block_text)
}
function pop(n, item) {
    while (sp > 0 && (ind[sp] > n || (ind[sp] == n && (!item || kind[sp] == "-")))) sp--
}
function content(n, s,   key, rest, parent) {
    if (s ~ /^- / || s == "-") {
        pop(n, 1)
        parent = path_of[sp]
        sp++
        ind[sp] = n; kind[sp] = "-"
        path_of[sp] = parent "." (count[parent]++ + 0)
        rest = substr(s, 2)
        if (match(rest, /^ +/)) rest = substr(rest, RLENGTH + 1)
        else RLENGTH = 0
        if (rest == "" || rest ~ /^#/) return
        content(n + 1 + RLENGTH, rest)
    } else if (match(s, /^("[^"]*"|'[^']*'|[A-Za-z0-9_.\/-]+):([ \t]|$)/)) {
        key = substr(s, 1, RLENGTH)
        sub(/:[ \t]?$/, "", key)
        rest = substr(s, RLENGTH + 1)
        sub(/^[ \t]+/, "", rest)
        pop(n, 0)
        parent = path_of[sp]
        sp++
        ind[sp] = n; kind[sp] = "k"
        path_of[sp] = parent "." plain(key)
        value(path_of[sp], n, rest)
    } else if (sp > 0) value(path_of[sp], ind[sp], s)
    else if (is_flow(s)) value("", -1, s)
}
BEGIN { sp = 0; path_of[0] = ""; ind[0] = -1 }
{
    sub(/\r$/, "")
    match($0, /^ */)
    n = RLENGTH
    s = substr($0, n + 1)
}
in_block {
    if (s == "") { block_text = block_text "\n"; next }
    if (n > block_indent) {
        if (block_at < 0) block_at = n
        s = substr($0, block_at + 1)
        block_text = block_text s "\n"
        next
    }
    end_block()
}
in_flow {
    fs = fs " " s
    if (depth_of(fs) <= 0) { fp = 1; flow(flow_path); in_flow = 0 }
    next
}
s == "" || s ~ /^#/ { next }
n == 0 && (s ~ /^---/ || s ~ /^\.\.\./ || s ~ /^%/) { next }
pending != "" && n > pending_indent && s !~ /^- / && pending_value !~ /^["']/ {
    pending_value = pending_value " " s
    next
}
{
    flush_pending()
    content(n, s)
}
END {
    if (in_block) end_block()
    flush_pending()
}
