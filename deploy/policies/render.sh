#!/bin/sh
# Writes a policy with which a cluster refuses images whose signature is revoked.
#
#   render.sh kyverno|policy-controller <IMAGES
#
# IMAGES has one image a line, by digest: registry.example.com/app@sha256:HEX. Other
# lines are refused. The CA's feed has those that were given as reference:
#
#   curl -fsS https://ca.example.com/revocations/feed.json |
#     jq -r '.statements[].reference | select(test("@sha256:[0-9a-f]{64}$")?)' | render.sh kyverno
set -eu

digests=
while read -r image || [ -n "$image" ]; do
  case $image in *[!A-Za-z0-9@:/._-]*) image= ;; esac
  digest=${image##*@sha256:}
  if [ ${#digest} -ne 64 ] || [ "$digest" = "$image" ] || [ -n "$(printf %s "$digest" | tr -d 0-9a-f)" ]; then
    echo "render.sh: give images by digest, one a line: registry.example.com/app@sha256:HEX" >&2
    exit 1
  fi
  digests="$digests $digest"
done
[ -n "$digests" ] || { echo "render.sh: no images are given" >&2; exit 1; }

case ${1-} in
  kyverno)
    cat <<'YAML'
# Kyverno 1.15 or later. Images have to be named by digest, or a policy before this one
# has to put the digest in.
apiVersion: policies.kyverno.io/v1
kind: ValidatingPolicy
metadata:
  name: mayfly-revoked
spec:
  validationActions: [Deny]
  matchConstraints:
    resourceRules:
      - apiGroups: [""]
        apiVersions: [v1]
        operations: [CREATE, UPDATE]
        resources: [pods, pods/ephemeralcontainers]
  variables:
    - name: images
      expression: >-
        (object.spec.containers + object.spec.?initContainers.orValue([]) +
        object.spec.?ephemeralContainers.orValue([])).map(c, c.image)
    - name: revoked
      expression: |-
        [
YAML
    for digest in $digests; do echo "          '@sha256:$digest',"; done
    cat <<'YAML'
        ]
  validations:
    - expression: "!variables.images.exists(i, variables.revoked.exists(r, i.endsWith(r)))"
      message: an image is revoked, and what was signed of it counts for nothing
YAML
    ;;
  policy-controller)
    cat <<'YAML'
# policy-controller resolves tags to digests before it asks.
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata:
  name: mayfly-revoked
spec:
  images:
YAML
    for digest in $digests; do echo "    - glob: \"**@sha256:$digest\""; done
    cat <<'YAML'
  authorities:
    - name: revoked
      static:
        action: fail
        message: the image is revoked, and what was signed of it counts for nothing
YAML
    ;;
  *)
    echo "render.sh: say kyverno or policy-controller" >&2
    exit 2
    ;;
esac
