package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"
)

// sboms writes two lists of what is in each binary, out of what Go recorded in it.
func (b build) sboms(binaries []string) error {
	for _, binary := range binaries {
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(binary) // #nosec G304 -- of the release
		if err != nil {
			return err
		}
		modules := []debug.Module{{Path: "stdlib", Version: info.GoVersion}}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			modules = append(modules, *m)
		}
		digest := sha256.Sum256(content)
		name := filepath.Base(binary)
		if err := writeJSON(binary+".cdx.json", b.cycloneDX(name, info.Path, hex.EncodeToString(digest[:]), modules)); err != nil {
			return err
		}
		if err := writeJSON(binary+".spdx.json", b.spdx(name, hex.EncodeToString(digest[:]), modules)); err != nil {
			return err
		}
	}
	return nil
}

// purl names a Go module for scanners (package-url).
func purl(m debug.Module) string { return "pkg:golang/" + m.Path + "@" + m.Version }

// cycloneDX is CycloneDX 1.6: modules, and that the program is made of them.
func (b build) cycloneDX(name, path, digest string, modules []debug.Module) map[string]any {
	main := debug.Module{Path: "github.com/mayfly-ca/mayfly", Version: b.version}
	var components, refs []any
	for _, m := range modules {
		component := map[string]any{"type": "library", "bom-ref": purl(m), "name": m.Path, "version": m.Version, "purl": purl(m)}
		// h1 is a hash over a module's files and no hash of CycloneDX's list (golang.org/x/mod/sumdb/dirhash).
		if m.Sum != "" {
			component["properties"] = []any{map[string]string{"name": "go:sum", "value": m.Sum}}
		}
		components, refs = append(components, component), append(refs, purl(m))
	}
	return map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "serialNumber": "urn:uuid:" + uuid(digest),
		"metadata": map[string]any{
			"timestamp": b.at.Format(time.RFC3339),
			"component": map[string]any{
				"type": "application", "bom-ref": purl(main), "name": name, "version": b.version, "purl": purl(main) + "#" + strings.TrimPrefix(path, main.Path+"/"),
				"hashes":   []any{map[string]string{"alg": "SHA-256", "content": digest}},
				"licenses": []any{map[string]any{"license": map[string]string{"id": "Apache-2.0"}}},
			},
		},
		"components":   components,
		"dependencies": []any{map[string]any{"ref": purl(main), "dependsOn": refs}},
	}
}

// uuid names the list of one binary, the same each time (RFC 9562 §5.8).
func uuid(digest string) string {
	return fmt.Sprintf("%s-%s-8%s-8%s-%s", digest[:8], digest[8:12], digest[13:16], digest[17:20], digest[20:32])
}

// spdx is SPDX 2.3.
func (b build) spdx(name, digest string, modules []debug.Module) map[string]any {
	const main = "SPDXRef-mayfly"
	one := func(id, name, version, purl, license string) map[string]any {
		return map[string]any{
			"SPDXID": id, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
			"licenseConcluded": "NOASSERTION", "licenseDeclared": cmp.Or(license, "NOASSERTION"), "copyrightText": "NOASSERTION",
			"externalRefs": []any{map[string]string{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}},
		}
	}
	program := one(main, name, b.version, purl(debug.Module{Path: "github.com/mayfly-ca/mayfly", Version: b.version}), "Apache-2.0")
	program["checksums"] = []any{map[string]string{"algorithm": "SHA256", "checksumValue": digest}}
	packages := []any{program}
	relationships := []any{map[string]string{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": main}}
	for i, m := range modules {
		id := fmt.Sprintf("SPDXRef-module-%d", i)
		library := one(id, m.Path, m.Version, purl(m), "")
		if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(sum) == sha256.Size {
			library["comment"] = "go.sum: " + m.Sum
		}
		packages = append(packages, library)
		relationships = append(relationships, map[string]string{"spdxElementId": main, "relationshipType": "DEPENDS_ON", "relatedSpdxElement": id})
	}
	return map[string]any{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": name,
		"documentNamespace": "https://github.com/mayfly-ca/mayfly/spdx/" + name + "-" + digest,
		"creationInfo":      map[string]any{"created": b.at.Format(time.RFC3339), "creators": []string{"Organization: Mayfly", "Tool: mayfly-release"}},
		"packages":          packages, "relationships": relationships,
	}
}
