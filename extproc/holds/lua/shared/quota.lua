-- Free tokens, of prompts and of answers, travel together as "input:output" ('' = none). A payer's are fields of their own, so that
-- HINCRBY counts them: free_… (what nobody holds), held_…, and total_… (ever credited). Who never had any has none of these fields.
local NO_TOKENS = '0:0'

-- What is done with them, made when it is needed: nearly every call has none, and each function that is made costs it 0.1 µs.
local function quota()
  local Q = {}

  function Q.both(text)
    if not text or text == '' then return '0', '0' end
    return string.match(text, '^(%d+):(%d+)$')
  end

  -- Two fields as one text; nil, if there is nothing of either. What is below nothing is nothing.
  function Q.of(input, output)
    if not input or less(input, '1') then input = '0' end
    if not output or less(output, '1') then output = '0' end
    if input ~= '0' or output ~= '0' then return input .. ':' .. output end
  end

  -- At least so many of each.
  function Q.covers(text, wanted)
    local input, output = Q.both(text)
    local wanted_input, wanted_output = Q.both(wanted)
    return not less(input, wanted_input) and not less(output, wanted_output)
  end

  function Q.add(P, name, text, sign)
    local input, output = Q.both(text)
    if sign == -1 then input, output = neg(input), neg(output) end
    add(P, name .. '_input', input)
    add(P, name .. '_output', output)
  end

  return Q
end
