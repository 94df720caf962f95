package policy

import (
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
)

// Read is one place where an expression looks at a claim that it names.
type Read struct {
	// Path is the claim and the members below it that the expression writes out,
	// as in claims.act.name and claims["act"]["name"].
	Path []string
	// Asked is set where the expression only asks whether the claim is there:
	// has(claims.x), or "x" in claims.
	Asked bool
	// Wants is the kind of value that the place can work with, or Missing where
	// it takes any.
	Wants claim.Kind
	// Folded is set where the case of letters plays no part.
	Folded bool
	// Address is set where the claim is compared with the text of a mail address.
	Address bool
}

// Name is the read as it may be written in an expression.
func (r Read) Name() string {
	var b strings.Builder
	b.WriteString(nameClaims)
	for _, name := range r.Path {
		if name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == "" {
			b.WriteString("." + name)
		} else {
			b.WriteString("[" + claim.Quote(name) + "]")
		}
	}
	return b.String()
}

// Misfit says what is wrong where the place meets a value of this kind, with the
// remedy, or is "" where nothing is.
func (r Read) Misfit(kind claim.Kind) string {
	name := r.Name()
	switch {
	case r.Wants == claim.Missing || r.Wants == kind || r.Asked || kind == claim.Missing || kind == claim.Null || r.Wants == claim.Array && kind == claim.Object:
		return ""
	case r.Wants == claim.Array && kind == claim.String:
		return name + " is a string where the expression takes it for a list; (type(" + name + ") == string ? [" + name + "] : " + name + ") is a list of either"
	case kind == claim.Array:
		return name + " is a list where the expression takes it for " + r.Wants.String() + "; write it as in \"x\" in " + name
	case r.Wants == claim.Bool, r.Wants == claim.Number, r.Wants == claim.String && kind != claim.Object:
		return name + " is " + kind.String() + " where the expression takes it for " + r.Wants.String() + ", and the two are never equal; string(" + name + ") is the text of either, as in string(" + name + ") == \"true\""
	default:
		return name + " is " + kind.String() + " where the expression takes it for " + r.Wants.String()
	}
}

// Reads is what a condition looks at: the claims that it names, and the certificate's
// name, whose reads have no path. A text that doesn't compile looks at nothing.
func Reads(condition string) (claims, san []Read) {
	x, err := compile(condition)
	if err != nil {
		return nil, nil
	}
	return x.Reads, x.san
}

// reader collects the reads of one expression.
type reader struct {
	reads []Read
	san   []Read // of principal.san, whose path is empty
}

// walk looks at e, of which the place around it is as in around.
func (r *reader) walk(e ast.Expr, around Read) {
	if path, asked, ok := claimPath(e); ok {
		around.Path, around.Asked = path, asked
		r.reads = append(r.reads, around)
		return
	}
	switch e.Kind() {
	case ast.IdentKind:
		if e.AsIdent() == nameSAN {
			r.san = append(r.san, around)
		}
	case ast.CallKind:
		r.call(e.AsCall(), around)
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		r.walk(c.IterRange(), Read{Wants: claim.Array})
		if c.IterVar() != nameClaims && c.IterVar2() != nameClaims { // else the name means something else in there
			r.all(c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result())
		}
	default:
		r.all(children(e)...)
	}
}

func (r *reader) all(of ...ast.Expr) {
	for _, one := range of {
		r.walk(one, Read{})
	}
}

func children(e ast.Expr) (all []ast.Expr) {
	for _, child := range ast.NavigateExpr(nil, e).Children() {
		all = append(all, child)
	}
	return all
}

// textCalls are the functions of texts whose result compares as their target would.
var textCalls = []string{"startsWith", "endsWith", "contains", "matches", "lowerAscii", "upperAscii", "trim", "replace", "split", "substring", "indexOf", "charAt"}

func (r *reader) call(c ast.CallExpr, around Read) {
	args := c.Args()
	if c.IsMemberFunction() {
		place := Read{Folded: around.Folded || c.FunctionName() == "lowerAscii" || c.FunctionName() == "upperAscii", Address: around.Address || hasAddress(args)}
		if slices.Contains(textCalls, c.FunctionName()) {
			place.Wants = claim.String
		}
		r.walk(c.Target(), place)
		r.all(args...)
		return
	}
	switch name := c.FunctionName(); {
	case name == operators.In && asksFor(args, r):
	case (name == operators.Equals || name == operators.NotEquals) && len(args) == 2:
		for i, one := range args {
			other := args[1-i]
			r.walk(one, Read{Wants: kindOf(other), Address: hasAddress([]ast.Expr{other}), Folded: around.Folded})
		}
	case (name == operators.In || name == operators.OldIn) && len(args) == 2:
		r.walk(args[0], Read{Wants: kindOfElements(args[1]), Address: hasAddress(args[1:]), Folded: around.Folded})
		r.walk(args[1], Read{Wants: claim.Array, Address: hasAddress(args[:1])})
	case name == "matches" && len(args) == 2:
		r.walk(args[0], Read{Wants: claim.String, Address: hasAddress(args[1:])})
		r.walk(args[1], Read{})
	default:
		r.all(args...)
	}
}

// asksFor takes down `"x" in claims`.
func asksFor(args []ast.Expr, r *reader) bool {
	if len(args) != 2 || args[1].Kind() != ast.IdentKind || args[1].AsIdent() != nameClaims {
		return false
	}
	name, ok := text(args[0])
	if ok {
		r.reads = append(r.reads, Read{Path: []string{name}, Asked: true})
	}
	return ok
}

// claimPath is the path that a chain of members below claims writes out.
func claimPath(e ast.Expr) (path []string, asked, ok bool) {
	for {
		switch e.Kind() {
		case ast.SelectKind:
			s := e.AsSelect()
			path, asked = append(path, s.FieldName()), asked || s.IsTestOnly()
			e = s.Operand()
		case ast.CallKind:
			c := e.AsCall()
			if c.FunctionName() != operators.Index || len(c.Args()) != 2 {
				return nil, false, false
			}
			name, isText := text(c.Args()[1])
			if !isText {
				return nil, false, false
			}
			path, e = append(path, name), c.Args()[0]
		default:
			slices.Reverse(path)
			return path, asked, len(path) > 0 && e.Kind() == ast.IdentKind && e.AsIdent() == nameClaims
		}
	}
}

func text(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

// hasAddress looks for the text of a mail address, or of a part with its @.
func hasAddress(all []ast.Expr) bool {
	for _, e := range all {
		if s, ok := text(e); ok && strings.Contains(s, "@") || e.Kind() == ast.ListKind && hasAddress(e.AsList().Elements()) {
			return true
		}
	}
	return false
}

// kindOfElements is the kind of claim that can equal an element of a list of
// literals, or Missing.
func kindOfElements(e ast.Expr) claim.Kind {
	if e.Kind() != ast.ListKind || e.AsList().Size() == 0 {
		return claim.Missing
	}
	return kindOf(e.AsList().Elements()[0])
}

var literalKinds = map[ref.Type]claim.Kind{
	types.StringType: claim.String, types.BoolType: claim.Bool, types.IntType: claim.Number, types.UintType: claim.Number, types.DoubleType: claim.Number,
}

// kindOf is the kind of claim that can equal a literal, or Missing.
func kindOf(e ast.Expr) claim.Kind {
	switch e.Kind() {
	case ast.ListKind:
		return claim.Array
	case ast.MapKind:
		return claim.Object
	case ast.LiteralKind:
		return literalKinds[e.AsLiteral().Type()]
	}
	return claim.Missing
}
